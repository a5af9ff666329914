"""Draw the figures of the concept pages, from runs that are made on the spot.

python benchmarks/concept_pictures.py               # all, into docs/pictures: about two minutes on one core
python benchmarks/concept_pictures.py edge noise
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

from optland import NegativeCurvature, Objective, Pilot, hessian, lanczos
from optland.curvature import gradient_noise
from optland.landscape import align, connect, eigenvector_direction, linear_path, plane, random_direction
from optland.plots import plot_gallery
from optland.problems import stable_ridge
from optland.train import BatchLoader, DataConfig, ModelConfig, build_model, load_data

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
GREY, BLUE, RED, GREEN = "#8a8a8a", "#0072b2", "#c0392b", "#1b7837"

Batch = tuple[Tensor, Tensor]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def digits() -> Batch:
    """The training images and labels of digits."""
    data = load_data(DataConfig())
    return data.transform((data.train_x, data.train_y))


def trained(seed: int, steps: int = 400) -> nn.Module:
    """A small CNN on digits after Adam."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(width=8), (1, 8, 8), 10)
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(steps):
        part = torch.randint(len(x), (64,))
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * (1 - step / steps)
        optimizer.zero_grad()
        loss_fn(model, (x[part], y[part])).backward()
        optimizer.step()
    return model


def save(figure: Any, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=120, metadata={"Software": None})
    plt.close(figure)


def gallery() -> None:
    """Four surfaces of two variables."""
    plot_gallery(PICTURES / "gallery.png")


def planes() -> None:
    """A trained net along its two sharpest directions and along two random ones."""
    model = trained(0)
    x, y = digits()
    objective = Objective(model, loss_fn, [(x[:500], y[:500])])
    with hessian(objective) as H:
        spectrum = lanczos(H, k=2, ends="top", max_matvecs=60)
    sharp = [eigenvector_direction(objective, spectrum, i) for i in (0, 1)]
    random = [random_direction(objective, seed=seed) for seed in (1, 2)]
    slices = {}
    for title, pair in (("the two sharpest directions", sharp), ("two random directions", random)):
        reach = 0.1 * pair[0].weight_norm / pair[0].norm  # the same distance in the weights for both planes
        slices[title] = plane(objective, *pair, distance=reach, num_points=25)
    figure, row = plt.subplots(1, 2, figsize=(9.5, 4.1), sharey=True, layout="constrained")
    levels = torch.logspace(-2.5, 1.2, 23).tolist()
    for axes, (title, found) in zip(row, slices.items(), strict=True):
        a, b = found.weight_units
        drawn = axes.contourf(a, b, found.loss.T, levels=levels, cmap="viridis", norm="log", extend="both")
        axes.plot(0, 0, "w+", ms=9)
        axes.set(title=title, xlabel="distance, in lengths of w")
    row[0].set_ylabel("distance, in lengths of w")
    figure.colorbar(drawn, ax=row, label="training loss", ticks=[0.01, 0.1, 1, 10], format="%g")
    save(figure, "planes")


def escape() -> None:
    """SGD and NegativeCurvature from a ridge that leads into a saddle."""
    ways: dict[str, list[list[float]]] = {}
    for name in ("SGD", "NegativeCurvature(SGD)"):
        objective = stable_ridge(1.0, 0.0)
        (w,) = objective.model.parameters()
        base = torch.optim.SGD([w], lr=0.05)
        optimizer = NegativeCurvature(base) if name.startswith("Neg") else base

        def closure(optimizer: Any = optimizer, objective: Objective = objective) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = objective.loss_fn(objective.model, next(iter(objective.batches)))
            loss.backward()
            return loss

        way = [w.detach().flatten().tolist()]
        for _ in range(400):
            optimizer.step(closure)
            way.append(w.detach().flatten().tolist())
        ways[name] = way
    figure, axes = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
    grid = torch.linspace(-1.4, 1.4, 141, dtype=torch.float64)
    heights = torch.stack([torch.stack([_ridge(a, b) for a in grid]) for b in grid])
    axes.contourf(grid, grid, heights, levels=30, cmap="Greys_r")
    for (name, way), colour, width in zip(ways.items(), (RED, BLUE), (6, 2), strict=True):
        axes.plot(*zip(*way, strict=True), color=colour, lw=width, label=name)
    axes.plot(0, 0, "k+", ms=12)
    axes.set(title="from (1, 0); the saddle is at the cross", xlabel="x", ylabel="y")
    axes.legend(loc="upper left")
    save(figure, "escape")


def _ridge(a: Tensor, b: Tensor) -> Tensor:
    found = stable_ridge(float(a), float(b))
    return torch.tensor(float(found.value()))


def connectivity() -> None:
    """The line between two nets, a trained curve, and the line after alignment."""
    one, two = trained(1), trained(2)
    x, y = digits()
    objective = Objective(one, loss_fn, [(x, y)])
    found = connect(objective, two, num_steps=300, num_points=31)
    aligned = linear_path(objective, align(one, two, x[:1]).state, num_points=31)
    figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
    paths = [("straight line", found.linear, RED), ("line after alignment", aligned, GREEN)]
    if found.curve is not None:
        paths.append(("trained curve", found.curve, BLUE))
    for name, path, colour in paths:
        axes.plot(path.t, path.loss, color=colour, lw=2, label=name)
    axes.set(xlabel="way from one net to the other", ylabel="training loss", ylim=(0, None))
    axes.set_title("two CNNs on digits", fontsize=11)
    axes.legend()
    axes.grid(alpha=0.25)
    save(figure, "connectivity")


def edge() -> None:
    """Sharpness in full-batch training at two rates, and 2 / lr."""
    x, y = digits()
    batch = (x[:300].flatten(1), y[:300])
    figure, row = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for lr, colour in ((0.1, RED), (0.2, BLUE)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        steps: list[int] = []
        sharpness, losses = [], []
        for step in range(1501):
            if step % 25 == 0:
                with hessian(Objective(model, _squares, [batch])) as H:
                    sharpness.append(lanczos(H, k=1, ends="top", rtol=1e-2, max_matvecs=30).values[0].value)
                steps.append(step)
            optimizer.zero_grad()
            loss = _squares(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        row[0].plot(steps, sharpness, color=colour, label=f"lr {lr:g}")
        row[0].axhline(2 / lr, color=colour, ls="--", lw=1)
        row[1].plot(losses, color=colour, label=f"lr {lr:g}")
    row[0].set(
        title="sharpness, and 2 / lr (dashed)", xlabel="step", ylabel="largest eigenvalue", ylim=(0, 26)
    )
    row[1].set(title="training loss", xlabel="step", yscale="log")
    for axes in row:
        axes.grid(alpha=0.25)
        axes.legend()
    save(figure, "edge")


def _squares(model: nn.Module, batch: Batch) -> Tensor:
    squares: Tensor = (model(batch[0]) - F.one_hot(batch[1], 10)).square().sum(1).mean() / 2
    return squares


def noise() -> None:
    """The noise scale during a run, and the batch that noise_batch chose."""
    x, y = digits()
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=8), (1, 8, 8), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = BatchLoader([x, y], batch_size=16, epochs=30, seed=0)
    samples, scale, batches = [], [], []
    with Pilot(optimizer, model, loss_fn, policies=["auto_lr", "noise_batch"]) as pilot:
        for batch in pilot.batches(loader):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            pilot.after_step(batch, loss)
            if pilot.step % 40 == 0:
                parts = [(x[i : i + 256], y[i : i + 256]) for i in range(0, 1024, 256)]
                found = gradient_noise(Objective(model, loss_fn, parts))
                samples.append(pilot.samples)
                scale.append(found.b_simple if found.b_simple is not None else float("nan"))
                batches.append(len(batch[0]))
    figure, axes = plt.subplots(figsize=(6.6, 3.6), layout="constrained")
    axes.plot(samples, scale, "o", ms=3, color=GREY, label="noise scale, measured")
    axes.step(samples, batches, where="post", color=BLUE, lw=2, label="batch size of noise_batch")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="samples seen", ylabel="samples", title="a CNN on digits")
    axes.legend()
    axes.grid(alpha=0.25)
    save(figure, "noise")


ALL: dict[str, Callable[[], None]] = {
    "gallery": gallery, "planes": planes, "escape": escape,
    "connectivity": connectivity, "edge": edge, "noise": noise,
}  # fmt: skip


def main() -> None:
    mpl.use("Agg")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", default=list(ALL), help=f"of {', '.join(ALL)}")
    for name in parser.parse_args().pictures:
        ALL[name]()


if __name__ == "__main__":
    main()
