"""MNIST and CIFAR-10, complete: downloaded once with a checksum, or read from a directory that the user
names.

    images, labels = load("mnist", "train")             # uint8 [60000, 28, 28], int64 [60000]
    images, labels = load("cifar10", "test", directory) # uint8 [10000, 32, 32, 3], int64 [10000]

A directory may hold the public originals (the four MNIST `*-ubyte.gz` files, `cifar-10-binary.tar.gz`) or
one archive of arrays: `mnist.npz` (`x_train`, `y_train`, `x_test`, `y_test`) or `cifar10_jpeg.npz`
(`train_jpeg` holds the files end to end, `train_offsets` where each begins, `y_train`; the same for
`test`).
"""

import gzip
import hashlib
import io
import itertools
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/"
# MD5 as published with the data sets; it guards against a broken download, not against an attacker.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
DATASETS = ("mnist", "cifar10")
SPLITS = ("train", "test")


class DatasetError(Exception):
    """The data set cannot be had; the message says what is missing and what to do."""


def load(name: str, split: str, directory: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (uint8, [N, 28, 28] or [N, 32, 32, 3]) and labels (int64 [N]) of one split.

    Without `directory` the public original is downloaded into `$LATHE_CACHE` (default `~/.cache/lathe`).
    Raises DatasetError for an unknown name, a missing file, a failed download or a wrong checksum.
    """
    if name not in DATASETS or split not in SPLITS:
        raise DatasetError(
            f"no data set '{name}' / '{split}'; there are {', '.join(DATASETS)} with {' and '.join(SPLITS)}"
        )
    if directory is not None and not Path(directory).is_dir():
        raise DatasetError(f"{directory}: not a directory; name the one that holds the {name} files")
    return _mnist(split, directory) if name == "mnist" else _cifar10(split, directory)


def _mnist(split: str, directory: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    if directory is not None and (archive := Path(directory) / "mnist.npz").exists():
        with np.load(archive) as arrays:
            return arrays[f"x_{split}"], arrays[f"y_{split}"].astype(np.int64)
    prefix = "train" if split == "train" else "t10k"
    images = gzip.decompress(_file(f"{prefix}-images-idx3-ubyte.gz", MNIST_URL, directory).read_bytes())
    labels = gzip.decompress(_file(f"{prefix}-labels-idx1-ubyte.gz", MNIST_URL, directory).read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64),
    )


def _cifar10(split: str, directory: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    if directory is not None and (archive := Path(directory) / "cifar10_jpeg.npz").exists():
        return load_jpeg_archive(archive, split)
    wanted = {f"data_batch_{i}.bin" for i in range(1, 6)} if split == "train" else {"test_batch.bin"}
    records = []
    with tarfile.open(_file("cifar-10-binary.tar.gz", CIFAR10_URL, directory)) as archive_file:
        for member in sorted(archive_file.getmembers(), key=lambda m: m.name):
            content = archive_file.extractfile(member) if Path(member.name).name in wanted else None
            if content is not None:
                records.append(np.frombuffer(content.read(), np.uint8).reshape(-1, 3073))
    table = np.concatenate(records)
    return table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), table[:, 0].astype(np.int64)


def load_jpeg_archive(path: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, 3] and labels int64 [N] of an archive whose images are JPEG files laid end to
    end.
    """
    from PIL import Image

    with np.load(path) as arrays:
        data, offsets = arrays[f"{split}_jpeg"], arrays[f"{split}_offsets"]
        labels = arrays[f"y_{split}"].astype(np.int64)
    images = [
        np.asarray(Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB"))
        for a, b in itertools.pairwise(offsets)
    ]
    return np.stack(images), labels


def _file(name: str, url: str, directory: str | Path | None) -> Path:
    if directory is not None:
        path = Path(directory) / name
        if not path.exists():
            raise DatasetError(
                f"{directory}: {name} is not there; put the public original there, or leave the directory out to download it"
            )
        return path
    cache = Path(os.environ.get("LATHE_CACHE", Path.home() / ".cache" / "lathe"))
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            urllib.request.urlretrieve(url + name, partial)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DatasetError(
                f"{url}{name}: download failed ({error}); fetch it by hand and name its directory"
            ) from error
        found = hashlib.md5(partial.read_bytes()).hexdigest()
        if found != CHECKSUMS[name]:
            partial.unlink()
            raise DatasetError(
                f"{url}{name}: checksum {found}, expected {CHECKSUMS[name]}; fetch it by hand and name its directory"
            )
        partial.replace(path)
    return path
