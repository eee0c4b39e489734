"""Singular values of the layers that were split, with the rank that was chosen."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.optimizer.report.html.distributions import Weights
from onnx_lathe.optimizer.report.record import StepRecord
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.layers import constant_value
from onnx_lathe.passes.numerics.rank.principal import weight_spectrum

RANK = re.compile(r"rank (\d+) of (\d+)")
PAIR = re.compile(r"ranks (\d+) of \d+ and (\d+) of \d+")
TERMS = re.compile(r"(\d+) terms")
LARGEST = 1 << 22
"""Elements of a matrix that is decomposed here: 2048 squared take a second."""
POINTS = 200
SPLITTING = ("svd", "tensor_train", "tucker")


@dataclass(frozen=True)
class Chosen:
    """Ranks of a layer that was split. `ranks`: of the weight as a matrix with a row for each of its "outputs" or
    "inputs", where the pass has a rank for both; else of the one matrix that it splits, "".
    """

    by: str
    ranks: Mapping[str, int]


def chosen_ranks(steps: Sequence[StepRecord]) -> dict[str, Chosen]:
    """By layer: of what was split, as the passes report it."""
    found = {}
    for step in steps:
        for edit in step.edits if step.name in SPLITTING else ():
            if ranks := _ranks(edit["what"]):
                found[edit["node"]] = Chosen(step.name, ranks)
    return found


def _ranks(what: str) -> dict[str, int]:
    if match := RANK.match(what):
        return {"": int(match[1])}
    if match := PAIR.match(what):
        return {"inputs": int(match[1]), "outputs": int(match[2])}
    if match := TERMS.match(what):  # so many terms have no higher rank on either side
        return dict.fromkeys(("inputs", "outputs"), int(match[1]))
    return {}


def spectra(layer: str, chosen: Chosen, before: Weights) -> list[dict[str, Any]]:
    """One for each rank, those that `spectrum` draws."""
    every = (spectrum(layer, rank, before, side) for side, rank in chosen.ranks.items())
    return [found | {"by": chosen.by} for found in every if found is not None]


def spectrum(layer: str, rank: int, before: Weights, side: str = "") -> dict[str, Any] | None:
    """`values`: singular values of the weight as a matrix [channels of that side, rest], the largest 1, and which of
    them, counted from 1; `energy`: the share of their squares up to each. None where there is no weight, or it is too
    large.
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
    axis = 1 - weight.axis if side == "inputs" else weight.axis
    matrix = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    squares = weight_spectrum(matrix)
    if not squares.size or squares[0] <= 0:
        return None
    places = np.unique(np.linspace(0, squares.size - 1, min(squares.size, POINTS)).round().astype(int))
    energy = np.cumsum(squares) / squares.sum()
    return {
        "of": side,
        "rank": min(rank, int(squares.size)),
        "full": int(squares.size),
        "places": [int(place) + 1 for place in places],
        "values": [float(f"{math.sqrt(max(squares[place], 0) / squares[0]):.4g}") for place in places],
        "energy": [float(f"{energy[place]:.5g}") for place in places],
    }
