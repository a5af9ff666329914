"""Groups of a fixed loader's batches: the same samples, in larger steps, resumed inside an epoch."""

from __future__ import annotations

import copy
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scripted import GrowsOnce
from tiers import slow
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from optland.batches import join, split
from optland.context.rng import rng_state
from optland.optim import SAM
from optland.pilot import Pilot
from optland.train import GroupedLoader, PrecisionConfig


class Noisy(Dataset[Any]):
    """Samples that are augmented while they are read."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()])  # noqa: NPY002


def loaders(workers: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers, **options)


def served(loader: GroupedLoader, grow: dict[int, int], first: int = 0, stop: int = 999) -> list[Any]:
    """Groups from number ``first`` on; after group k the size is set to ``grow[k]``."""
    groups = []
    for k, (index, noise) in enumerate(loader, first):
        groups.append((index.tolist(), noise.tolist()))
        loader.set_batch_size(grow.get(k, loader.batch_size))
        if k + 1 == stop:
            break
    return groups


def test_sizes_follow_and_every_epoch_serves_every_sample_once() -> None:
    loader = GroupedLoader(loaders(), epochs=2, seed=3)
    groups = served(loader, {1: 8, 3: 16})
    assert [len(index) for index, _ in groups] == [4, 4, 8, 6, 16, 6]
    first, second = ([i for index, _ in part for i in index] for part in (groups[:4], groups[4:]))
    assert sorted(first) == sorted(second) == list(range(22))
    assert first != second
    assert loader.at_epoch_end
    assert loader.samples_served == loader.total_samples == 44


@pytest.mark.parametrize(
    ("at", "workers", "own"),
    [
        *((at, 0, own) for at in (1, 2, 3, 4, 5) for own in (False, True)),
        (2, 2, True),
        *slow((2, 2, False), (5, 2, False), (5, 2, True)),
    ],
)
def test_a_resumed_run_goes_on_exactly(at: int, workers: int, own: bool) -> None:
    def make() -> GroupedLoader:
        generator = {"generator": torch.Generator().manual_seed(77)} if own else {}
        return GroupedLoader(loaders(workers, **generator), epochs=2, seed=3)

    grow = {1: 8, 3: 16}
    torch.manual_seed(0)
    whole = served(make(), grow)
    begun = make()
    before = served(begun, grow, stop=at)
    torch.manual_seed(99)  # a resumed process is in another random state
    after = make()
    after.load_state_dict(begun.state_dict())
    assert before + served(after, grow, first=at) == whole


def test_the_runs_own_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = rng_state()
    served(GroupedLoader(loaders(), epochs=2, seed=3), {})
    after = rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]


def test_a_sampler_is_told_the_epoch() -> None:
    class Told(RandomSampler):
        epochs: ClassVar[list[int]] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    data = TensorDataset(torch.arange(6))
    list(GroupedLoader(DataLoader(data, batch_size=2, sampler=Told(data)), epochs=3))
    assert Told.epochs == [0, 1, 2]


def test_lists_batch_samplers_and_dropped_ends_are_counted() -> None:
    data = TensorDataset(torch.arange(10))
    sampler = BatchSampler(RandomSampler(data), 3, drop_last=False)
    assert GroupedLoader([torch.zeros(4), torch.zeros(3)], epochs=1).num_samples == 7
    assert GroupedLoader(DataLoader(data, batch_size=4, drop_last=True), epochs=1).num_samples == 8
    batches = list(GroupedLoader(DataLoader(data, batch_sampler=sampler), epochs=1))
    assert [len(x) for (x,) in batches] == [3, 3, 3, 1]


def test_what_cannot_be_grouped_is_refused_in_words() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([torch.zeros(1)] * 6)

    with pytest.raises(TypeError, match="is a stream"):
        GroupedLoader(iter([torch.zeros(2)]), epochs=1)
    with pytest.raises(TypeError, match="say num_samples="):
        GroupedLoader(DataLoader(Stream(), batch_size=2), epochs=1)
    with pytest.raises(ValueError, match="served 6 samples in an epoch, not 9"):
        list(GroupedLoader(DataLoader(Stream(), batch_size=2), epochs=1, num_samples=9))
    with pytest.raises(ValueError, match="served 6 samples in an epoch, not 5"):
        list(GroupedLoader(DataLoader(Stream(), batch_size=2), epochs=1, num_samples=5))
    loader = GroupedLoader([torch.zeros(4)], epochs=1)
    with pytest.raises(
        ValueError, match=r"batch size 6 is not a multiple of the loader's own 4; use for example 8"
    ):
        loader.set_batch_size(6)
    ragged = GroupedLoader([torch.zeros(2, 3), torch.zeros(2, 5)], epochs=1)
    ragged.set_batch_size(4)
    with pytest.raises(ValueError, match="pad all samples to one shape"):
        list(ragged)


def test_join_undoes_split_for_every_kind_of_batch() -> None:
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    for batch in (x, (x, y), {"x": x, "y": [y, "tag"]}, [x, ("a", "b", "c"), torch.tensor(3.0)]):
        again = join(split(batch, 3))
        assert str(again) == str(batch)
    assert join([(x, ["a"] * 6), (x[:1], ["b"])])[1] == ["a"] * 6 + ["b"]


def test_noise_batch_grows_a_data_loaders_updates_and_micro_batches_bound_a_forward() -> None:
    """The batch grows on a plain DataLoader, and no forward pass that is differentiated sees more than 16 samples."""
    torch.manual_seed(0)
    x = torch.randn(512, 4)
    y = (x @ torch.randn(4) + 3.0 * torch.randn(512)).unsqueeze(1)
    loader = GroupedLoader(DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True), epochs=12, seed=0)
    model, forwards = nn.Linear(4, 1), []
    model.register_forward_hook(lambda module, args, out: forwards.append(len(args[0]) * out.requires_grad))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    precision = PrecisionConfig(micro_batch=16).build(optimizer)

    def loss_fn(net: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(net(batch[0]), batch[1])

    pilot = Pilot(
        optimizer, model, loss_fn, policies=[GrowsOnce(20)], budget=1.0,
        total_samples=loader.total_samples,
    )  # fmt: skip
    sizes, largest = [], 0
    for batch in pilot.batches(loader):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, model, batch)

        forwards.clear()
        loss = precision.step(closure)
        largest = max(largest, *forwards)
        sizes.append(len(batch[0]))
        pilot.after_step(batch, loss)
    assert max(sizes) == 32
    assert largest == 16
    assert loader.samples_served == 12 * 512


def test_a_micro_batch_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch: 0 samples are too few"):
        PrecisionConfig(micro_batch=0)


class Growing:
    """auto_lr and a batch that grows, over SAM on a plain DataLoader, in float64."""

    def __init__(self, micro_batch: int | None = None) -> None:
        torch.manual_seed(0)
        x = torch.randn(256, 6, dtype=torch.float64)
        y = (x @ torch.randn(6, 3, dtype=torch.float64) + torch.randn(256, 3, dtype=torch.float64)).argmax(1)
        data = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
        self.loader = GroupedLoader(data, epochs=4, seed=1)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.optimizer = SAM(torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9), rho=0.05)
        self.precision = PrecisionConfig(micro_batch=micro_batch).build(self.optimizer)
        policies = ["auto_lr", GrowsOnce(12)]
        total = self.loader.total_samples
        self.pilot = Pilot(
            self.optimizer, self.model, self.loss, policies=policies, budget=1.0, total_samples=total
        )
        self.sizes: list[int] = []

    @staticmethod
    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def run(self, stop: int = 999) -> Growing:
        for batch in self.pilot.batches(self.loader):

            def closure(batch: Any = batch) -> Tensor:
                self.optimizer.zero_grad()
                return self.precision.backward(self.loss, self.model, batch)

            self.sizes.append(len(batch[0]))
            self.pilot.after_step(batch, self.precision.step(closure))
            if self.pilot.step == stop:
                break
        return self

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def test_accumulation_is_the_large_batch_under_auto_lr_and_sam() -> None:
    whole, parts = Growing().run(), Growing(micro_batch=8).run()
    assert max(whole.sizes) > 8
    assert whole.sizes == parts.sizes
    assert [d.actuator for d in whole.pilot.decisions] == [d.actuator for d in parts.pilot.decisions]
    assert torch.allclose(whole.weights(), parts.weights(), rtol=1e-7, atol=1e-9)


def test_a_run_with_groups_resumes_bit_for_bit() -> None:
    whole, first, second = Growing().run(), Growing().run(stop=21), Growing()
    torch.manual_seed(99)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.loader.load_state_dict(first.loader.state_dict())
    second.pilot.load_state_dict(copy.deepcopy(first.pilot.state_dict()))
    second.run()
    assert first.sizes + second.sizes == whole.sizes
    assert torch.equal(second.weights(), whole.weights())
