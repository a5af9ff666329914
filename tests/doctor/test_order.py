"""Batches in order are told from shuffled ones: by closed forms, and by SciPy's analysis of variance."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import f_oneway
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optland.doctor import Symptom, watch
from optland.doctor.order import Order


def text(num_rows: int = 480, context: int = 12) -> Tensor:
    """Windows of a text: the words of a real module's documentation, by their characters."""
    letters = torch.tensor([ord(c) % 64 for c in (torch.optim.SGD.__doc__ or "") * 4])
    starts = torch.randint(len(letters) - context, (num_rows,), generator=torch.Generator().manual_seed(0))
    return torch.stack([letters[s : s + context] for s in starts.tolist()])


def facts(loader: object) -> dict[str, float]:
    order = Order()
    for batch in loader:  # type: ignore[attr-defined]
        order.look(batch)
    return order.facts()


def test_the_ratio_is_scipys_of_the_first_tokens() -> None:
    tokens = torch.randint(1000, (320, 1)).repeat(
        1, 2
    )  # all numbers of a row are the same one, or how often it is common
    batches = list(tokens.split(32))
    values = [b[:, 0].double().numpy() for b in batches]
    assert facts([(b,) for b in batches])["order_ratio"] >= f_oneway(*values).statistic * (1 - 1e-9)
    numbers = torch.randn(320, dtype=torch.float64)
    parts = [(torch.zeros(32, 3), y) for y in numbers.split(32)]
    assert facts(parts)["order_ratio"] == pytest.approx(
        f_oneway(*(y.numpy() for _, y in parts)).statistic, rel=1e-9
    )


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_data_have_no_order(seed: int) -> None:
    tokens, made = text(), torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), 32, shuffle=True, generator=made)
    assert facts(loader)["order_ratio"] < 4


def test_texts_of_several_lengths_and_an_index_are_left_alone() -> None:
    by_length = [(torch.randint(9, (16, 4 + i)),) for i in range(12)]
    assert facts(by_length) == {}
    with_index = [(torch.randn(16, 3), torch.arange(16 * i, 16 * (i + 1))) for i in range(12)]
    assert facts(with_index) == {}


def sorted_text(tokens: Tensor) -> Tensor:
    return tokens[tokens[:, 0].argsort(stable=True)]


@pytest.mark.parametrize("way", ["loader in turn", "list"])
@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "shuffled"])
def test_a_loop_over_sorted_text_is_told(way: str, sort: bool) -> None:
    torch.manual_seed(0)
    tokens = sorted_text(text()) if sort else text()
    data = TensorDataset(tokens[:, :-1], tokens[:, 1:])
    loader = DataLoader(data, 16) if way == "loader in turn" else list(DataLoader(data, 16))
    model = nn.Sequential(nn.Embedding(64, 16), nn.Linear(16, 64))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with watch(model, optimizer, loader) as doctor:
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            optimizer.step()
            doctor.after_step((x, y), loss)
    assert (Symptom.DATA_NOT_SHUFFLED in [f.symptom for f in doctor.diagnosis.findings]) is sort
