"""The shipped 2,000 + 2,000 CIFAR-10 images as batches: `--train data.py:train`, `--eval data.py:test`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import datasets

# Channel means and standard deviations of the training images, in grey levels: what train.py normalizes by.
MEAN = (125.3, 123.0, 113.9)
STD = (63.0, 62.1, 66.7)
BATCH = 250


def train() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from _batches("train")


def test() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from _batches("test")


def _batches(split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(float32 [250, 3, 32, 32], int64 [250]) pairs."""
    images, labels = datasets.load_jpeg_archive(Path(__file__).resolve().parents[1] / "cifar10.npz", split)
    scaled = ((images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)).transpose(0, 3, 1, 2)
    for start in range(0, len(images), BATCH):
        yield np.ascontiguousarray(scaled[start : start + BATCH]), labels[start : start + BATCH]
