"""Whether a written network computes what the lowered model does in ONNX Runtime: every output, on the same input.

In float the two differ by how sums are ordered, and by what Winograd's transforms round. In INT8 a value near the middle
between two levels may be rounded to either, and the layers behind it see another input. How much rounding alone moves
this model's outputs is measured first, in ONNX Runtime, by input that is changed by as little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.bundle.examples import Examples
from onnx_lathe.runtime.targets.core.distances import (
    CHANGE,
    CHANGE_QUANTIZED,
    floors,
    largest,
    moved_by,
    relative,
    with_half_weights,
)
from onnx_lathe.runtime.targets.core.sizes import Sizes
from onnx_lathe.runtime.targets.ncnn.convert import Conversion
from onnx_lathe.runtime.targets.ncnn.process import outputs_of
from onnx_lathe.runtime.targets.ncnn.requantize import is_int8

FLOAT = 1e-4
"""Largest difference of a value, relative to the output's largest."""
HALF = 2e-2
"""The same with weights that were rounded to float16, where that alone does not move more in ONNX Runtime."""
QUANTIZED = 2e-2
"""Relative distance (L2) of an output of an INT8 network, where rounding moves it less."""
MIXED = 1e-2
"""Relative distance of a batch's outputs from those of its samples alone, above which it is no batch."""
MOST, MOST_QUANTIZED = 1e-2, 0.5
"""More is allowed to no network, however rounding moves it."""
TIMES_ROUNDING = 3.0


@dataclass(frozen=True)
class Agreement:
    """By output: how far ncnn is from ONNX Runtime, how far it may be, and what ONNX Runtime computes (`wanted`); `floors`
    as core/distances.py gives them. `by_length`: whether distances are those of `relative`, not of `largest`.
    """

    found: Mapping[str, float]
    allowed: Mapping[str, float]
    version: str
    wanted: Mapping[str, np.ndarray]
    floors: Mapping[str, float]
    by_length: bool

    def worst(self) -> str:
        return max(self.found, key=lambda name: self.found[name] / self.allowed[name])

    def share(self) -> float:
        """Of what is allowed, in the worst output."""
        return self.found[self.worst()] / self.allowed[self.worst()]


def samples(
    written: Conversion, sizes: Sizes, feeds: Mapping[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Inputs of one sample each to compare on: the data's, where it has the sizes that the network was written for,
    else random ones; and random ones of the other sizes, where some are open.
    """
    first = {}
    for port in written.inputs:
        value = feeds[port.tensor]
        one = value[:1] if port.is_batched else value
        shape = sizes.first[port.tensor]
        first[port.tensor] = one if one.shape == shape else _random(shape, value.dtype, 0)
    if not sizes.open:
        return [first]
    second = {name: _random(sizes.second[name], value.dtype, 1) for name, value in first.items()}
    return [first, second]


def check_batch(model: onnx.ModelProto, written: Conversion, one: Mapping[str, np.ndarray]) -> None:
    """Raises TargetError if the model computes another thing of two samples at once than of each alone: ncnn has no
    batch. A model that does not run on two at once has none either.
    """
    batched = [port.tensor for port in written.inputs if port.is_batched]
    if not batched:
        return
    other = {
        name: _random(value.shape, value.dtype, 2) if name in batched else value
        for name, value in one.items()
    }
    session = ort.session(model)
    joined = {
        name: np.concatenate([value, other[name]]) if name in batched else value
        for name, value in one.items()
    }
    try:
        together = ort.run(session, joined)
    except ModelError:
        return
    alone = [ort.run(session, feeds) for feeds in (one, other)]
    for name, value in together.items():
        rows = [single[name] for single in alone]
        joins = all(row.ndim and len(row) == 1 for row in rows)
        if not joins or relative(value, np.concatenate(rows)) > MIXED:
            raise TargetError(
                f"output '{name}' of two samples at once is another than of each alone, and ncnn takes one after another: "
                f"export the model with a first dimension of 1, or say that it is no batch, such as with "
                f"shapes={{{batched[0]}: {'x'.join(map(str, (2, *one[batched[0]].shape[1:])))}}}"
            )


def _random(shape: Sequence[int], dtype: np.dtype, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(dtype) if np.issubdtype(dtype, np.floating) else np.zeros(shape, dtype)


def agreement(
    model: onnx.ModelProto,
    written: Conversion,
    files: tuple[Path, Path],
    feeds: Mapping[str, np.ndarray],
    half: bool = False,
) -> Agreement:
    """Compares the files (.param, .bin) with the lowered `model` on `feeds`, of one sample.

    Raises TargetError if ncnn cannot load or run them.
    """
    got, version = outputs_of(*files, written.inputs, written.outputs, feeds)
    quantized = is_quantized(written)
    # of a MatMul with an INT8 weight alone ONNX Runtime's optimizers quantize the input too (MatMulNBits)
    decodes = not quantized and any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    session = ort.session(model, optimized=not decodes)
    wanted = ort.run(session, feeds)
    least_sizes = floors(model)

    def distance(name: str, value: np.ndarray) -> float:
        return (relative if quantized else largest)(value, wanted[name], least_sizes.get(name, 0.0))

    least = QUANTIZED if quantized else HALF if half else FLOAT
    found = {name: distance(name, got[name]) for name in wanted}
    allowed = dict.fromkeys(wanted, least)
    if max(found.values(), default=0.0) > least:
        moved = dict.fromkeys(wanted, 0.0)
        if quantized or not half:
            moved = moved_by(session, feeds, wanted, CHANGE_QUANTIZED if quantized else CHANGE, distance)
        if half:
            rounded = ort.run(ort.session(with_half_weights(model)), feeds)
            moved = {name: max(moved[name], distance(name, rounded[name])) for name in wanted}
        most = MOST_QUANTIZED if quantized or half else MOST
        allowed = {name: max(least, min(TIMES_ROUNDING * moved[name], most)) for name in wanted}
    return Agreement(found, allowed, version, wanted, least_sizes, quantized)


def is_quantized(written: Conversion) -> bool:
    return any(map(is_int8, written.layers))


def check(result: Agreement) -> None:
    """Raises TargetError if an output is further from ONNX Runtime's than it may be."""
    name = result.worst()
    if not result.found[name] <= result.allowed[name]:
        raise TargetError(
            f"ncnn {result.version} computes another output '{name}' than ONNX Runtime: it is off by "
            f"{result.found[name]:.1e} of its size, {result.allowed[name]:.1e} are allowed; nothing is written"
        )


def examples(samples: Sequence[Mapping[str, np.ndarray]], results: Sequence[Agreement]) -> Examples:
    """The samples, with what ONNX Runtime computes of each; an output may err as far as in the sample that allows most."""
    last = results[-1]
    return Examples(
        [(feeds, result.wanted) for feeds, result in zip(samples, results, strict=True)],
        "length" if last.by_length else "largest",
        {name: max(result.allowed[name] for result in results) for name in last.allowed},
        last.floors,
    )


def report(result: Agreement) -> dict[str, Any]:
    """For the record."""
    name = result.worst()
    return {
        "verified": {
            "in": f"ncnn {result.version}",
            "worst_output": name,
            "relative_error": result.found[name],
            "allowed": result.allowed[name],
        }
    }
