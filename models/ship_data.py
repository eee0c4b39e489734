"""Write the data that the repository ships: a part of MNIST and of CIFAR-10, small enough for a clone.

mnist.npz    all 10,000 test images and the first 10,000 training images, as `test/image`, `test/labels`, `train/image`, `train/labels`
cifar10.npz  the first 2,000 training and 2,000 test images as JPEG files laid end to end (quality 95 unless they are JPEG already)
"""

import argparse
import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
MNIST_TRAIN = 10_000
CIFAR10_EACH = 2_000


def mnist(directory: str | None) -> None:
    arrays = {}
    for split, count in (("train", MNIST_TRAIN), ("test", 10_000)):
        images, labels = datasets.load("mnist", split, directory)
        arrays |= {f"{split}/image": images[:count], f"{split}/labels": labels[:count].astype(np.uint8)}
    np.savez_compressed(HERE / "mnist.npz", **arrays)


def cifar10(directory: str | None) -> None:
    arrays = {}
    for split in datasets.SPLITS:
        files, labels = _jpeg_files(split, directory)
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{split}"] = labels.astype(np.uint8)
    np.savez(HERE / "cifar10.npz", **arrays)


def _jpeg_files(split: str, directory: str | None) -> tuple[list[bytes], np.ndarray]:
    archive = Path(directory or "") / "cifar10_jpeg.npz"
    if directory is not None and archive.exists():  # already JPEG: coding it a second time would lose more
        with np.load(archive) as arrays:
            data, offsets = arrays[f"{split}_jpeg"], arrays[f"{split}_offsets"]
            return [data[offsets[i] : offsets[i + 1]].tobytes() for i in range(CIFAR10_EACH)], arrays[
                f"y_{split}"
            ][:CIFAR10_EACH]
    images, labels = datasets.load("cifar10", split, directory)
    files = []
    for image in images[:CIFAR10_EACH]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    return files, labels[:CIFAR10_EACH]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="directory with the complete data sets (default: download them)")
    options = parser.parse_args()
    mnist(options.data_dir)
    cifar10(options.data_dir)
