"""Text: nothing lost, nothing leaked, every refusal with its fix, and figures that mean what they say."""

from __future__ import annotations

import math
import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optland.config import UserError
from optland.train import BatchLoader
from optland.train.data.text import TextConfig, TextData, TextHistory, evaluate_text, load_text
from optland.train.loops.evaluate import evaluate

SPLITS = ("train", "val", "test")


def write(folder: Path, texts: dict[str, str | bytes]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def whole(data: TextData) -> list[str]:
    return [data.decode(getattr(data, split)) for split in SPLITS]


def library(tmp_path: Path, count: int = 60) -> Path:
    """Many small files, each of a letter of its own."""
    return write(tmp_path, {f"{k:02}.txt": chr(0x4E00 + k) * (20 + k) for k in range(count)})


# Splits -------------------------------------------------------------------------------------------


def test_files_are_dealt_out_whole_near_the_shares(tmp_path: Path) -> None:
    folder = library(tmp_path)
    data = load_text(TextConfig(paths=[str(folder)], context=4))
    train, val, test = whole(data)
    letters = [set(text) for text in (train, val, test)]
    assert len(letters[0] | letters[1] | letters[2]) == sum(map(len, letters))
    originals = {file.read_text() for file in folder.iterdir()}
    assert {c * text.count(c) for text in (train, val, test) for c in set(text)} == originals
    total = sum(map(len, (train, val, test)))
    assert 0.025 <= len(val) / total <= 0.05
    assert 0.025 <= len(test) / total <= 0.05
    other = load_text(TextConfig(paths=[str(folder)], context=4, split_seed=1))
    assert set(whole(other)[1]) != letters[1]


@pytest.mark.parametrize("count", [1, 3])
def test_few_files_are_cut_in_stretches(tmp_path: Path, count: int) -> None:
    text = "".join(chr(0x100 + k) for k in range(1200))
    pieces = {f"{k}.txt": text[k * 1200 // count : (k + 1) * 1200 // count] for k in range(count)}
    data = load_text(TextConfig(paths=[str(write(tmp_path, pieces))], context=4))
    assert "".join(whole(data)) == text
    assert [len(getattr(data, split)) for split in SPLITS] == pytest.approx([1080, 60, 60], abs=1)


def test_equal_files_are_read_once_so_none_is_in_two_splits(tmp_path: Path) -> None:
    folder = library(tmp_path)
    once = load_text(TextConfig(paths=[str(folder)], context=4))
    for file in list(folder.iterdir()):
        (folder / f"{file.stem}-copy.txt").write_bytes(file.read_bytes())
    twice = load_text(TextConfig(paths=[str(folder)], context=4))
    assert twice.fingerprint == once.fingerprint
    assert whole(twice) == whole(once)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(20, 200))
def test_every_token_but_the_first_is_a_target_once_and_no_window_leaves_its_split(
    context: int, length: int
) -> None:
    tokens = torch.arange(length)
    data = TextData(None, context, tokens, tokens + 1000, tokens + 2000)
    for k, split in enumerate(SPLITS):
        x, y = data.windows(split)
        assert torch.equal(y, x + 1)
        covered = (length - 1) // context * context
        assert sorted(y.flatten().tolist()) == list(range(1000 * k + 1, 1000 * k + 1 + covered))


def test_windows_feed_the_loader(tmp_path: Path) -> None:
    data = load_text(TextConfig(paths=[str(library(tmp_path))], context=8))
    x, y = data.windows("train")
    assert x.data_ptr() == data.train.data_ptr(), "a view, not a copy"
    loader = BatchLoader([x, y], 7, epochs=1, seed=3)
    served = torch.cat([xs for xs, _ in loader])
    assert sorted(map(tuple, served.tolist())) == sorted(map(tuple, x.tolist()))


# Tokens -------------------------------------------------------------------------------------------


def test_characters_come_back_and_the_alphabet_is_sorted(tmp_path: Path) -> None:
    text = "naïve Ω→𝄞\r\nend " * 40
    data = load_text(TextConfig(paths=[str(write(tmp_path, {"a.txt": text}))], context=4))
    assert "".join(whole(data)) == text
    assert list(data.alphabet or "") == sorted(set(text))
    assert data.vocabulary == len(set(text))
    assert int(data.train.max()) < data.vocabulary


def test_bytes_take_anything(tmp_path: Path) -> None:
    content = bytes(range(256)) * 3
    data = load_text(TextConfig(paths=[str(write(tmp_path, {"a.bin": content}))], tokens="bytes", context=4))
    assert data.vocabulary == 256
    assert bytes(torch.cat([data.train, data.val, data.test]).tolist()) == content


@pytest.mark.parametrize("size", [401, 402, 403, 404])
def test_the_first_file_is_cut_at_a_whole_character(tmp_path: Path, size: int) -> None:
    folder = write(tmp_path, {"a.txt": "𝄞" * 400, "b.txt": "b" * 400})
    data = load_text(TextConfig(paths=[str(folder)], context=1, max_bytes=size))
    assert "".join(whole(data)) == "𝄞" * (size // 4)


def test_bytes_are_cut_where_they_are_asked_to(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.bin": b"\x80" * 1000})
    data = load_text(TextConfig(paths=[str(folder)], tokens="bytes", context=1, max_bytes=600))
    assert sum(len(t) for t in (data.train, data.val, data.test)) == 600


def test_whole_files_are_read_as_long_as_they_fit(tmp_path: Path) -> None:
    folder = write(
        tmp_path, {f"{k}.txt": str(k) * size for k, size in enumerate([100, 120, 200, 80, 60, 50])}
    )
    data = load_text(TextConfig(paths=[str(folder)], context=2, max_bytes=350))
    assert data.alphabet == "0135"


# Paths --------------------------------------------------------------------------------------------


def test_files_folders_and_patterns_name_each_file_once(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path, {"a/1.txt": "x" * 300, "a/b/2.txt": "y" * 300, "a/3.md": "z" * 300})
    monkeypatch.chdir(tmp_path)

    def letters(*paths: str) -> tuple[str | None, int]:
        data = load_text(TextConfig(paths=list(paths), context=2))
        return data.alphabet, sum(len(t) for t in (data.train, data.val, data.test))

    assert letters("a/1.txt") == ("x", 300)
    assert letters("a") == ("xz", 600)
    assert letters("a/**/*.txt") == ("xy", 600)
    assert letters("a", "a/1.txt", str(tmp_path / "a" / "*.md")) == ("xz", 600)


def test_the_default_is_the_standard_library_of_this_python() -> None:
    data = load_text(TextConfig(max_bytes=400_000))
    first = min(Path(sysconfig.get_path("stdlib")).glob("*.py")).read_text(encoding="utf-8")
    assert any(first in text for text in whole(data))
    assert data.fingerprint == load_text(TextConfig(max_bytes=400_000)).fingerprint
    assert data.fingerprint != load_text(TextConfig(max_bytes=400_000, split_seed=1)).fingerprint


def test_what_is_no_text_is_named_with_its_fix(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "zero/a.txt": b"abc\0" * 200,
            "latin/a.txt": "naïve ".encode("latin-1") * 99,
            "empty/a.txt": b"",
            "small/a.txt": b"abc" * 30,
            "closed/a.txt": b"abc" * 300,
        },
    )
    (tmp_path / "hollow").mkdir()
    for name, says in (
        ("zero", r"a\.txt is not text, it holds a zero byte; leave it out.*data\.tokens=bytes"),
        ("latin", r"a\.txt is not UTF-8 text \(byte 2\).*data\.tokens=bytes"),
        ("empty", r"empty; give files with some text"),
        (
            "small",
            r"validation text of .* has 5 tokens, a window with its targets needs 33.*data\.context below 5",
        ),
        ("hollow", r"there is no file at .*hollow; give a file, a folder or a pattern"),
        ("missing/*.txt", r"there is no file at .*missing"),
    ):
        with pytest.raises(UserError, match=says):
            load_text(TextConfig(paths=[str(tmp_path / name)], context=32))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    folder = write(tmp_path, {"a.txt": "abc" * 300})

    def denied(self: Path) -> bytes:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"a\.txt cannot be read: Permission denied"):
        load_text(TextConfig(paths=[str(folder)]))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"tokens": "words"}, "^tokens: 'words' is not known"),
        ({"context": 0}, "^context: 0 tokens are too few"),
        ({"max_bytes": 0}, "^max_bytes: 0 is too small"),
        ({"paths": ["a", ""]}, "^paths: '' is no path"),
        ({"paths": ["a\0"]}, "is no path"),
        (
            {"context": 6, "max_bytes": 100},
            "^context: 6 tokens are more than the validation text can have, 5% of",
        ),
    ],
)
def test_impossible_options_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TextConfig(**config)


# Evaluation ---------------------------------------------------------------------------------------


class Bigram(nn.Module):
    """Logits that are a table of log-probabilities, by the present token."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.log())
        self.dropout = nn.Dropout(0.9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.table[tokens])


def test_bits_and_perplexity_are_those_of_a_known_source() -> None:
    """a is followed by a or b with 3/4 and 1/4, b always by a: the loss of the true table is counted by hand."""
    model = Bigram(torch.tensor([[0.75, 0.25], [1.0 - 1e-9, 1e-9]], dtype=torch.float64)).train()
    tokens = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0, 1])  # 3 x aa, 3 x ab, 2 x ba
    data = TextData("ab", 4, tokens, tokens, tokens)
    bits = (3 * math.log2(4 / 3) + 3 * math.log2(4) + 2 * 0.0) / 8
    for size in (1, 2, 64):
        found = evaluate_text(model, data.windows("val"), batch_size=size)
        assert found["bpc"] == pytest.approx(bits, rel=1e-6)
        assert found["loss"] == pytest.approx(bits * math.log(2), rel=1e-6)
        assert found["perplexity"] == pytest.approx(2**bits, rel=1e-6)
        of_tokens = evaluate(model, *data.windows("val"), batch_size=size)
        # The table says a after both: right for aa and ba.
        assert of_tokens == pytest.approx({"loss": bits * math.log(2), "acc": 100 * 5 / 8}, rel=1e-6)
    assert model.training


def test_history_keeps_the_best_by_validation_and_survives_a_diverged_net() -> None:
    good, bad = torch.full((2, 2), 0.5), torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    tokens = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0])
    data, history = TextData("ab", 4, tokens, tokens, tokens), TextHistory()
    for epoch, table in enumerate([bad, good, bad, torch.full((2, 2), math.nan)], 1):
        history.measure(Bigram(table), data, epoch)
    assert history.best["epoch"] == 2
    assert history.best["test/bpc"] == pytest.approx(1.0)
    assert math.isnan(history.last["val/loss"])
    copy = TextHistory()
    copy.load_state_dict(history.state_dict())
    assert copy.best == history.best
    assert math.isnan(copy.last["val/loss"])
    assert len(copy.state_dict()) == 2, "a history must not grow with its epochs"
    explosive = Bigram(torch.tensor([[1.0, 1e-38], [1.0, 1e-38]]))
    explosive.table.data *= 1e3
    assert math.isfinite(history.measure(explosive, data, 5)["val/perplexity"])
