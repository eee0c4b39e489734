"""Random values that depend on the running test alone: not on which tests ran before it, or in which order."""

import random
import sys

import numpy as np

TEST, FIXTURE, FILE = 101, 102, 103
"""A test draws other values than what it finds in its file or in a fixture of several tests, so that its
inputs are not its weights.
"""
_generator = np.random.default_rng(FILE)


def reseed(seed: int = TEST) -> None:
    """Every generator begins anew: this file's, and the global ones of Python, NumPy and PyTorch.

    tests/conftest.py calls it before each test, before each file is imported, and on both sides of each
    fixture that several tests share.
    """
    global _generator
    _generator = np.random.default_rng(seed)
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):  # importing it here would cost every run two seconds
        torch.manual_seed(seed)


def generator() -> np.random.Generator:
    """The generator of the running test, or of the test file that is imported. Ask each time: who keeps it
    would draw from another test's.
    """
    return _generator
