"""Data that lie in files: written here in the formats that the readers document, whole, damaged and absent."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shlex
import struct
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from processes import exit_code, start

from optland.config import UserError
from optland.train.data import DataConfig, idx, load_data
from optland.train.data.fetch import FileSet, fetch_once

N_TRAIN, N_TEST = 60, 20
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def images(n: int, *shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return (np.arange(n) % 10).astype(np.uint8)


# ---------------------------------------------------------------- idx files


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Fashion-MNIST, plain, whose checksums pass for the known ones."""
    arrays = (images(N_TRAIN, 28, 28), labels(N_TRAIN), images(N_TEST, 28, 28, seed=1), labels(N_TEST))
    sums = []
    for name, array in zip(NAMES, arrays, strict=True):
        (tmp_path / name).write_bytes(idx_bytes(array))
        sums.append(hashlib.sha256(idx_bytes(array)).hexdigest())
    monkeypatch.setitem(idx.SHA256, "fashion_mnist", tuple(sums))
    return tmp_path


def fashion(root: Path, **more: Any) -> DataConfig:
    return DataConfig("fashion_mnist", root=str(root), **more)


def test_idx_files_plain_and_gzipped_give_the_same_images(idx_folder: Path, tmp_path: Path) -> None:
    plain = load_data(fashion(idx_folder))
    packed = tmp_path / "other" / "FashionMNIST" / "raw"
    packed.mkdir(parents=True)
    for name in NAMES:
        (packed / f"{name}.gz").write_bytes(gzip.compress((idx_folder / name).read_bytes()))
    again = load_data(fashion(tmp_path / "other"))
    assert plain.image_shape == (1, 28, 28)
    assert [len(y) for y in (plain.train_y, plain.val_y, plain.test_y)] == [54, 6, 20]
    assert torch.equal(plain.train_x, again.train_x)
    assert np.array_equal(plain.test_x[:, 0].numpy(), images(N_TEST, 28, 28, seed=1))
    assert plain.test_y.tolist() == labels(N_TEST).tolist()
    both = torch.cat([plain.train_x, plain.val_x])
    assert {x.numpy().tobytes() for x in both} == {x.tobytes() for x in images(N_TRAIN, 28, 28)}


def test_torchvision_reads_the_same_files_alike(idx_folder: Path) -> None:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    data = load_data(fashion(idx_folder))
    assert torch.equal(data.test_x[:, 0], read_image_file(str(idx_folder / NAMES[2])))
    assert torch.equal(data.test_y, read_label_file(str(idx_folder / NAMES[3])))


def flip_a_bit(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda content: content[:-7],
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: content[:6],
    ],
    ids=["flipped", "cut", "longer", "empty", "page", "header"],
)
def test_a_damaged_idx_file_is_named_with_the_command(idx_folder: Path, damage: Any) -> None:
    path = idx_folder / NAMES[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"is damaged \(its sha256 is not that of fashion_mnist\)") as caught:
        load_data(fashion(idx_folder))
    assert str(path) in str(caught.value)
    assert "Delete it and fetch it again with: python -c" in str(caught.value)


@pytest.mark.parametrize(
    "damage", [flip_a_bit, lambda content: content[: len(content) // 2], lambda content: b"no"]
)
def test_a_damaged_gzip_file_is_named(idx_folder: Path, damage: Any) -> None:
    plain = idx_folder / NAMES[2]
    packed = plain.with_name(f"{plain.name}.gz")
    packed.write_bytes(damage(gzip.compress(plain.read_bytes())))
    plain.unlink()
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        load_data(fashion(idx_folder))


def test_another_set_in_files_of_the_same_names_is_not_taken_for_this_one(idx_folder: Path) -> None:
    with pytest.raises(UserError, match="its sha256 is not that of mnist"):
        load_data(DataConfig("mnist", root=str(idx_folder)))


def test_the_root_comes_from_the_config_then_the_variable_then_the_cache(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {})
    monkeypatch.setenv("OPTLAND_DATA", str(idx_folder))
    assert len(load_data(DataConfig("fashion_mnist")).test_y) == N_TEST
    with pytest.raises(UserError, match="elsewhere"):
        load_data(fashion(tmp_path / "elsewhere"))
    monkeypatch.delenv("OPTLAND_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    with pytest.raises(UserError, match=r"me/\.cache/optland"):
        load_data(DataConfig("fashion_mnist"))
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"fashion_mnist": idx_folder})
    assert len(load_data(DataConfig("fashion_mnist")).test_y) == N_TEST


@pytest.mark.slow
def test_the_real_fashion_mnist_where_it_is_installed() -> None:
    if not idx.SYSTEM_FOLDERS["fashion_mnist"].is_dir():
        return  # Debian's package is not here; the files written above are the test then
    data = load_data(DataConfig("fashion_mnist"))
    assert [len(y) for y in (data.train_y, data.val_y, data.test_y)] == [54_000, 6_000, 10_000]
    assert torch.bincount(data.test_y).tolist() == [1000] * 10
    assert float(data.mean) / 255 == pytest.approx(
        0.2860, abs=1e-3
    )  # the published moments of the training set
    assert float(data.std) / 255 == pytest.approx(0.3530, abs=1e-3)


# ---------------------------------------------------------------- CIFAR


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a web server of the test's folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))  # how often it looks for the end
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def cifar_files(classes: int) -> dict[str, bytes]:
    """The pickled batches of CIFAR, as described on its page: rows of 3072 bytes, red, green, blue."""
    key = "labels" if classes == 10 else "fine_labels"

    def batch(n: int, seed: int) -> bytes:
        rows = images(n, 3 * 32 * 32, seed=seed)
        return pickle.dumps({"data": rows, key: [k % classes for k in range(n)]})

    if classes == 100:
        meta = pickle.dumps({"fine_label_names": [str(k) for k in range(100)]})
        return {"train": batch(200, 0), "test": batch(100, 1), "meta": meta}
    parts = {f"data_batch_{k}": batch(20, k) for k in range(1, 6)}
    return {
        **parts,
        "test_batch": batch(20, 9),
        "batches.meta": pickle.dumps({"label_names": list("abcdefghij")}),
    }


@pytest.fixture(params=[10, 100])
def cifar(
    request: Any, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, dict[str, bytes]]:
    """A server with a tiny CIFAR archive, whose md5 sums pass for the known ones."""
    from torchvision import datasets

    kind = datasets.CIFAR10 if request.param == 10 else datasets.CIFAR100
    files = cifar_files(request.param)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    folder = tmp_path / "server" / kind.base_folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archive = tmp_path / "server" / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=kind.base_folder)
    monkeypatch.setattr(
        kind, "train_list", [[n, sums[n]] for n in files if "test" not in n and "meta" not in n]
    )
    monkeypatch.setattr(kind, "test_list", [[n, sums[n]] for n in files if "test" in n])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "url", f"{server}/server/{kind.filename}")
    return f"cifar{request.param}", tmp_path / "data", files


def test_cifar_is_fetched_only_when_asked_and_read(cifar: tuple[str, Path, dict[str, bytes]]) -> None:
    name, root, files = cifar
    with pytest.raises(UserError, match="is not in") as caught:
        load_data(DataConfig(name, root=str(root)))
    assert not root.exists()
    command = str(caught.value).partition("Fetch it once with: ")[2]
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    namespace: dict[str, Any] = {}
    exec(words[2], namespace)  # the command in the error does what it says
    data = load_data(DataConfig(name, root=str(root)))
    assert data.image_shape == (3, 32, 32)
    assert data.num_classes == int(name[5:])
    test = pickle.loads(files["test_batch" if name == "cifar10" else "test"])
    assert np.array_equal(data.test_x.numpy().reshape(len(data.test_y), -1), test["data"])
    assert data.test_y.tolist() == test["labels" if name == "cifar10" else "fine_labels"]
    n = 100 if name == "cifar10" else 200
    assert [len(data.train_y), len(data.val_y)] == [n - n // 10, n // 10]


def test_a_damaged_or_missing_cifar_file_is_named(cifar: tuple[str, Path, dict[str, bytes]]) -> None:
    name, root, _ = cifar
    load_data(DataConfig(name, root=str(root), download=True))
    (path,) = root.rglob("data_batch_3" if name == "cifar10" else "train")
    content = path.read_bytes()
    path.write_bytes(flip_a_bit(content))
    with pytest.raises(UserError, match=f"{path.name} is damaged .its md5 sum"):
        load_data(DataConfig(name, root=str(root)))
    path.unlink()
    with pytest.raises(UserError, match=f"the file {path.name} is not there"):
        load_data(DataConfig(name, root=str(root)))
    load_data(DataConfig(name, root=str(root), download=True))
    assert path.read_bytes() == content


def test_a_server_that_is_not_there_gives_one_message(
    cifar: tuple[str, Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    name, root, _ = cifar
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    monkeypatch.setattr(kind, "url", f"{kind.url}.nowhere")
    with pytest.raises(UserError, match=r"could not be fetched into .*name its folder here with data\.root"):
        load_data(DataConfig(name, root=str(root), download=True))


# ---------------------------------------------------------------- SVHN


def test_svhn_is_read_with_ten_as_zero(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    parts = {}
    for name, n in (("train", 40), ("test", 20)):
        path = tmp_path / f"{name}_32x32.mat"
        digits = (np.arange(n) % 10 + 1).astype(np.uint8)  # 1 to 10, where 10 stands for the digit 0
        savemat(path, {"X": images(n, 32, 32, 3).transpose(1, 2, 3, 0), "y": digits[:, None]})
        parts[name] = [f"{server}/{path.name}", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    data = load_data(DataConfig("svhn", root=str(tmp_path), augment="standard"))
    assert (data.crop, data.flip) == (True, False), "a mirrored house number is not one"
    assert data.test_y.tolist() == [(k % 10 + 1) % 10 for k in range(20)]
    assert np.array_equal(data.test_x.numpy(), images(20, 32, 32, 3).transpose(0, 3, 1, 2))
    fetched = load_data(DataConfig("svhn", root=str(tmp_path / "copy"), download=True))
    assert torch.equal(fetched.train_x, data.train_x)
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"the file test_32x32\.mat is not there"):
        load_data(DataConfig("svhn", root=str(tmp_path)))


# ---------------------------------------------------------------- a folder of images


def write_pictures(folder: Path, classes: str, n: int) -> None:
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(n):
            Image.new("RGB", (10 + k, 7), (40 * shade, k, 200)).save(folder / name / f"{k}.png")


def test_an_image_folder_is_read_resized_and_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, "abc", 20)
    data = load_data(DataConfig("image_folder", root=str(tmp_path), image_size=6))
    assert data.image_shape == (3, 6, 6)
    assert data.num_classes == 3
    assert [len(y) for y in (data.train_y, data.val_y, data.test_y)] == [42, 6, 12]
    assert torch.equal(data.train_x[:, 0, 0, 0].long(), 40 * data.train_y)
    assert bool((data.val_x[:, 2] == 200).all())


def test_an_image_folder_may_bring_its_own_test_split(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", "ab", 20)
    write_pictures(tmp_path / "test", "ab", 3)
    data = load_data(DataConfig("image_folder", root=str(tmp_path)))
    assert [len(y) for y in (data.train_y, data.val_y, data.test_y)] == [36, 4, 6]
    write_pictures(tmp_path / "test", "c", 1)
    with pytest.raises(UserError, match=r"different classes: \['c'\]"):
        load_data(DataConfig("image_folder", root=str(tmp_path)))


def test_a_bad_image_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not hold one folder of images for each class"):
        load_data(DataConfig("image_folder", root=str(tmp_path / "nowhere")))
    write_pictures(tmp_path, "ab", 3)
    with pytest.raises(UserError, match="6 samples are too few to split; at least 20"):
        load_data(DataConfig("image_folder", root=str(tmp_path)))
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a/0\.png cannot be read"):
        load_data(DataConfig("image_folder", root=str(tmp_path)))


# ---------------------------------------------------------------- several processes


def _rank(rank: int, folder: Path) -> None:
    """One of two processes that want the same data: once they can be fetched, once they cannot."""
    meet = (folder / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)

    def works(root: Path) -> None:
        time.sleep(0.3)
        (root / f"fetched_by_{rank}").write_text("")

    def fails(root: Path) -> None:
        time.sleep(0.3)
        raise OSError("no network")

    found = []
    for fetch in (works, fails):
        data = folder / fetch.__name__
        try:
            fetch_once(FileSet("cifar10", root=str(data), download=True), fetch)
            found.append(str([p.name for p in data.iterdir()]))
        except UserError as error:
            found.append(f"refused: {error}")
    (folder / f"found_by_{rank}").write_text("\n".join(found))
    dist.destroy_process_group()


@pytest.mark.distributed
def test_one_process_fetches_and_the_other_waits(tmp_path: Path) -> None:
    ranks = [start(_rank, rank, tmp_path) for rank in (0, 1)]
    assert [exit_code(process) for process in ranks] == [0, 0]
    (fetched, failed), (waited, found_nothing) = (
        (tmp_path / f"found_by_{rank}").read_text().splitlines() for rank in (0, 1)
    )
    assert fetched == waited == "['fetched_by_0']"
    assert "could not be fetched" in failed
    assert found_nothing == "[]"  # it finds nothing there and says so, instead of waiting for ever
