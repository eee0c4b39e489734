"""Pairs of small models to judge, with their data, in the current directory."""

import numpy as np
import onnx

from tests.support.builders import build

PASSED_ON = "(float[n,4] x) => (float[n,4] y) { y = Mul(x, s) }"
SAMPLES = 40


def pair(text: str, scale: np.ndarray | float) -> list[str]:
    """A model that gives what it is fed, and one that scales it."""
    onnx.save(build(text, s=np.float32(1)), "base.onnx")
    onnx.save(build(text, s=np.asarray(scale, np.float32)), "candidate.onnx")
    return ["gate", "base.onnx", "candidate.onnx", "--quiet"]


def classifiers(changed: int, samples: int = SAMPLES) -> list[str]:
    """Two models of which the base is always right, the candidate not of the first `changed` samples."""
    x = np.eye(4, dtype=np.float32)[np.arange(samples) % 4]
    x[:changed, 0] += 0.5
    np.savez("data.npz", x=x, labels=np.arange(samples) % 4)
    return [*pair(PASSED_ON, [3, 1, 1, 1]), "--data", "data.npz"]
