"""Whether a written network computes what the lowered model does in ONNX Runtime: every output, on the same input.

In float the two differ by how sums are ordered, and by what Winograd's transforms round. In INT8 a value near the middle
between two levels may be rounded to either, and the layers behind it see another input. How much rounding alone moves
this model's outputs is measured first, in ONNX Runtime, by input that is changed by as little.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.running import ort
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
PROBABILITIES = ("Sigmoid", "Softmax", "HardSigmoid")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
MOVING = (*LAYOUT, "Slice")
SMALLEST_PROBABILITY = 1e-2
"""A detector that sees nothing in noise writes 1e-6 everywhere: a difference relative to that tells nothing of it."""
MIXED = 1e-2
"""Relative distance of a batch's outputs from those of its samples alone, above which it is no batch."""
MOST, MOST_QUANTIZED = 1e-2, 0.5
"""More is allowed to no network, however rounding moves it."""
TIMES_ROUNDING = 3.0
CHANGES = 3
CHANGE, CHANGE_QUANTIZED = 2.0**-18, 2.0**-9
"""Of the input's largest value: the change whose effect is measured. 4e-6 is what F(4 x 4) and F(6 x 6) err in float32;
for INT8 it is a quarter of a step.
"""


@dataclass(frozen=True)
class Agreement:
    """By output: how far ncnn is from ONNX Runtime, and how far it may be."""

    found: Mapping[str, float]
    allowed: Mapping[str, float]
    version: str

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
        if not joins or _relative(value, np.concatenate(rows)) > MIXED:
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
    floors = _floors(model)

    def distance(name: str, value: np.ndarray) -> float:
        return (_relative if quantized else _largest)(value, wanted[name], floors.get(name, 0.0))

    least = QUANTIZED if quantized else HALF if half else FLOAT
    found = {name: distance(name, got[name]) for name in wanted}
    allowed = dict.fromkeys(wanted, least)
    if max(found.values(), default=0.0) > least:
        moved = dict.fromkeys(wanted, 0.0)
        if quantized or not half:
            moved = _moved(session, feeds, wanted, CHANGE_QUANTIZED if quantized else CHANGE, distance)
        if half:
            rounded = ort.run(ort.session(_with_half_weights(model)), feeds)
            moved = {name: max(moved[name], distance(name, rounded[name])) for name in wanted}
        most = MOST_QUANTIZED if quantized or half else MOST
        allowed = {name: max(least, min(TIMES_ROUNDING * moved[name], most)) for name in wanted}
    return Agreement(found, allowed, version)


def _floors(model: onnx.ModelProto) -> dict[str, float]:
    """By output that holds probabilities: the size below which they say "no", however they differ."""
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for value in model.graph.output:
        node = made.get(value.name)
        while node is not None and node.op_type in MOVING:
            node = made.get(node.input[0])
        if node is not None and node.op_type in PROBABILITIES:
            found[value.name] = SMALLEST_PROBABILITY
    return found


def _with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 constants hold what float16 can: what that moves is the format's, and no defect. Scales of
    INT8 are stored in float32 always.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    scales = {name for node in found.graph.node if node.op_type in QUANTIZERS for name in node.input[1:]}
    for tensor in found.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims and tensor.name not in scales:
            values = onnx.numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                half = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    return found


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


def _largest(got: np.ndarray, wanted: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference relative to the largest value, or to `floor` if that is more; infinite for another shape, or where one is no number. Of
    integers and bools, how many of them differ.
    """
    if got.shape != wanted.shape:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(got != wanted)) if wanted.size else 0.0
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    scale = max(float(np.abs(other[np.isfinite(other)]).max(initial=0.0)), floor) or 1.0
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    worst = float(np.where(same, 0.0, np.abs(one - other)).max(initial=0.0)) / scale
    return worst if np.isfinite(worst) else float("inf")


def _relative(got: np.ndarray, wanted: np.ndarray, floor: float = 0.0) -> float:
    """Distance relative to the length, or to that of values of `floor` if it is more; of integers and bools, how many of them differ."""
    if got.shape != wanted.shape or not np.issubdtype(wanted.dtype, np.floating):
        return _largest(got, wanted, floor)
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    length = max(float(np.linalg.norm(other)), floor * other.size**0.5) or 1.0
    found = float(np.linalg.norm(one - other)) / length
    return found if np.isfinite(found) else float("inf")


def _moved(
    session: Any,
    feeds: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    change: float,
    distance: Callable[[str, np.ndarray], float],
) -> dict[str, float]:
    """By output, the largest distance that a small change of the input makes."""
    found = dict.fromkeys(wanted, 0.0)
    for seed in range(CHANGES):
        generator = np.random.default_rng(seed)
        changed = {
            name: value
            if not np.issubdtype(value.dtype, np.floating)
            else (
                value + change * np.abs(value).max(initial=0.0) * generator.uniform(-1, 1, value.shape)
            ).astype(value.dtype)
            for name, value in feeds.items()
        }
        for name, value in ort.run(session, changed).items():
            found[name] = max(found[name], distance(name, value))
    return found
