"""What is done to a batch of images: standardisation and augmentation, against torchvision's own functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.transforms import functional

from optland.train.data import DataConfig, ImageData, load_data
from optland.train.data.images import crop_and_flip
from optland.train.loops.evaluate import History, accuracy_error, evaluate
from optland.train.loops.loader import BatchLoader


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig("fake", num_samples=300, image_size=12, augment="standard"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bytes_are_standardised_per_channel_as_torchvision_does(data: ImageData) -> None:
    assert data.train_x.dtype == torch.uint8
    pixels = data.train_x.double()
    assert torch.allclose(data.mean.flatten().double(), pixels.mean(dim=(0, 2, 3)), rtol=1e-6)
    assert torch.allclose(data.std.flatten().double(), pixels.std(dim=(0, 2, 3), correction=0), rtol=1e-6)
    scaled = functional.convert_image_dtype(data.val_x, torch.float32)
    mean, std = ((moment / 255).flatten().tolist() for moment in (data.mean, data.std))
    wanted = functional.normalize(scaled, mean, std)
    assert torch.allclose(data.normalise(data.val_x), wanted, atol=1e-5)


def test_real_numbers_are_standardised_once() -> None:
    data = load_data(DataConfig())
    batch = (data.train_x[:4], data.train_y[:4])
    x, y = data.transform(batch)
    assert x is batch[0]
    assert y is batch[1]
    pixels = data.train_x * data.std + data.mean  # mean and std lead back to the pixels
    assert pixels.min() == pytest.approx(0, abs=1e-6)
    assert pixels.max() == pytest.approx(1, abs=1e-6)


def test_every_augmented_image_is_one_of_torchvisions_crops_and_all_of_them_occur() -> None:
    n, padding = 3000, 2
    image = torch.randint(1, 256, (3, 6, 5), generator=generator(), dtype=torch.uint8)
    images = image.expand(n, -1, -1, -1)
    augmented = crop_and_flip(images, generator(1), padding=padding, flip=True)
    padded = functional.pad(image, [padding] * 4)
    possible = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = functional.crop(padded, top, left, 6, 5)
            possible[crop.numpy().tobytes()] = (top, left, False)
            possible[functional.hflip(crop).numpy().tobytes()] = (top, left, True)
    assert len(possible) == 50
    drawn = [possible[one.numpy().tobytes()] for one in augmented]
    counts = torch.tensor([drawn.count(choice) for choice in possible.values()])
    # Chi-squared with 49 degrees of freedom: 99.9 % of such draws lie below 85.4.
    assert ((counts - n / 50).square() / (n / 50)).sum() < 85.4
    plain = crop_and_flip(images, generator(2), padding=padding, flip=False)
    assert not any(possible[one.numpy().tobytes()][2] for one in plain)


def test_a_batch_is_a_function_of_the_generators_state(data: ImageData) -> None:
    batch = (data.train_x[:16], data.train_y[:16])
    before = torch.get_rng_state()
    one, again, other = (data.transform(batch, generator(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not drawn from"
    assert data.transform(batch, generator())[1] is batch[1]
    with pytest.raises(ValueError, match=r"give transform\(\) a torch.Generator"):
        data.transform(batch)


def test_a_loader_that_resumes_inside_an_epoch_serves_the_same_augmented_batches(data: ImageData) -> None:
    def loader() -> BatchLoader:
        tensors = [data.train_x, data.train_y]
        return BatchLoader(tensors, 32, epochs=2, seed=1, transform=data.transform)

    whole = list(loader())
    first, second = loader(), loader()
    for _, _batch in zip(range(5), first, strict=False):
        state = first.state_dict()
    second.load_state_dict(state)
    rest = list(second)
    assert len(rest) == len(whole) - 5
    for (x, y), (wanted_x, wanted_y) in zip(rest, whole[5:], strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)
    assert whole[0][0].dtype == torch.float32


def test_evaluation_standardises_and_does_not_augment(data: ImageData) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 10))
    row = History().measure(model, data, 1)
    ready = (data.test_x.float() - data.mean) / data.std
    assert row["test/loss"] == pytest.approx(evaluate(model, ready, data.test_y)["loss"], rel=1e-6)
    assert row == History().measure(model, data, 1)


def test_augmentation_follows_the_data_set() -> None:
    small = {"num_samples": 40, "image_size": 8}
    assert not load_data(DataConfig("fake", **small)).augments
    both = load_data(DataConfig("fake", augment="standard", **small))
    assert (both.crop, both.flip) == (True, True)
    one = replace(both, flip=False)
    assert one.augments


def test_moving_takes_everything_along(data: ImageData) -> None:
    moved = data.to("meta")
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert moved.flip
    x, _ = moved.transform(
        (moved.train_x[:5], moved.train_y[:5]), generator()
    )  # a generator of another device
    assert (x.device.type, x.shape) == ("meta", (5, 3, 12, 12))


def test_a_channel_that_never_changes_becomes_zero() -> None:
    from optland.train.data.load import _moments

    x = torch.randint(256, (20, 2, 4, 4), generator=generator(), dtype=torch.uint8)
    x[:, 1] = 9
    mean, std = _moments(x)
    assert torch.equal((x[:, 1].float() - mean[1]) / std[1], torch.zeros(20, 4, 4))


@pytest.mark.parametrize(("share", "samples"), [(0.9, 50), (0.5, 200), (0.97, 400)])
def test_the_error_of_an_accuracy_is_the_deviation_over_samples_of_that_size(
    share: float, samples: int
) -> None:
    """Against the spread of simulated accuracies, which the added answers raise a little at 50 samples."""
    draws = torch.rand(4000, samples, generator=generator(), dtype=torch.float64)
    spread = float((100.0 * (draws < share).double().mean(dim=1)).std())
    assert accuracy_error(100.0 * share, samples) == pytest.approx(spread, rel=0.15)
    assert accuracy_error(100.0, samples) > 0


def test_an_evaluation_comes_with_the_error_of_its_number_of_samples() -> None:
    data = load_data(DataConfig("digits"))
    row = History().measure(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, 1)
    for split, y in (("val", data.val_y), ("test", data.test_y)):
        assert row[f"{split}/acc_error"] == accuracy_error(row[f"{split}/acc"], y.numel())


def test_the_first_of_the_most_accurate_evaluations_with_the_lowest_loss_is_the_best() -> None:
    history = History()
    for epoch, (accuracy, loss) in enumerate(
        [(90.0, 0.3), (95.0, 0.4), (95.0, 0.2), (95.0, 0.2), (80.0, 0.1)], 1
    ):
        history.add({"epoch": float(epoch), "val/acc": accuracy, "val/loss": loss})
    assert (history.best["epoch"], history.last["epoch"]) == (3.0, 5.0)
    resumed = History()
    resumed.load_state_dict(history.state_dict())
    resumed.add({"epoch": 6.0, "val/acc": 95.0, "val/loss": 0.1})
    assert (resumed.best["epoch"], history.best["epoch"]) == (6.0, 3.0)
    assert len(resumed.state_dict()) == 2
