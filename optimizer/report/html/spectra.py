"""Singular values of the layers that were split, with the rank that was chosen."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.optimizer.report.html.distributions import Weights
from onnx_lathe.optimizer.report.record import StepRecord
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.layers import constant_value
from onnx_lathe.passes.numerics.rank.principal import weight_spectrum

RANK = re.compile(r"rank (\d+) of (\d+)")
LARGEST = 1 << 22
"""Elements of a matrix that is decomposed here: 2048 squared take a second."""
POINTS = 200
SPLITTING = ("svd", "tensor_train")


def chosen_ranks(steps: Sequence[StepRecord]) -> dict[str, tuple[str, int]]:
    """Layer -> (pass, rank) of what was split, as the passes report it."""
    found = {}
    for step in steps:
        for edit in step.edits if step.name in SPLITTING else ():
            if match := RANK.match(edit["what"]):
                found[edit["node"]] = (step.name, int(match[1]))
    return found


def spectrum(layer: str, rank: int, before: Weights) -> dict[str, Any] | None:
    """`values`: singular values of the weight as a matrix [channels, inputs], the largest 1, and which of them,
    counted from 1; `energy`: the share of their squares up to each. None where there is no weight, or it is too large.
    """
    weight = before.of(layer)
    if weight is None:
        return None
    try:
        values = np.asarray(constant_value(weight.tensor, weight.opset), np.float32)
    except REFUSALS:
        return None
    if values.ndim < 2 or values.size > LARGEST or not np.isfinite(values).all():
        return None
    matrix = np.moveaxis(values, weight.axis, 0).reshape(values.shape[weight.axis], -1)
    squares = weight_spectrum(matrix)
    if not squares.size or squares[0] <= 0:
        return None
    places = np.unique(np.linspace(0, squares.size - 1, min(squares.size, POINTS)).round().astype(int))
    energy = np.cumsum(squares) / squares.sum()
    return {
        "rank": rank,
        "full": int(squares.size),
        "places": [int(place) + 1 for place in places],
        "values": [float(f"{math.sqrt(max(squares[place], 0) / squares[0]):.4g}") for place in places],
        "energy": [float(f"{energy[place]:.5g}") for place in places],
    }
