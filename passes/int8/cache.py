"""Calibration caches of TensorRT 5 to 10: what its calibrators found, by the names of its tensors.

    TRT-8601-EntropyCalibration2
    input: 3caa5293
    (Unnamed Layer* 3) [Constant]_output: 3a83126f

A number is the bits of a float32 in hexadecimal, high byte first: the tensor's scale, which is its range
over 127. TensorRT writes it without leading zeros, so that 0 is one digit, and any scale from 2.6e-29 on eight:
fewer are taken for a line that was cut. Names are those of the ONNX model, and some that TensorRT made up for tensors of its own.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_lathe.errors import UsageError
from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.quantization.placement import floor_range, is_floor
from onnx_lathe.passes.numerics.quantization import affine

DIGITS = re.compile(r"0|[0-9a-fA-F]{8}")
FIRST_LINE = re.compile(rb"TRT-\d+-\w+\s*")
LONGEST_FIRST_LINE = 100
SAME_VALUES = (*LAYOUT, "Dropout")
"""Operators that hand their values on as they are: what TensorRT knows of one side holds for the other."""
NOT_BELOW_ZERO = ("Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs")
NEIGHBOURS = (*SAME_VALUES, "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
"""Operators whose result lies in the range of what they read."""


@dataclass(frozen=True)
class CalibrationCache:
    """`scales`: by TensorRT's name of the tensor."""

    path: str
    scales: Mapping[str, float]

    def range_of(self, tensor: Tensor) -> tuple[float, float] | None:
        """(low, high) of the tensor, under its own name or that of a tensor with the same values above it;
        None if the cache has neither.

        What follows from the operator that writes it is known besides: a ReLU leaves nothing below zero. (0, 0)
        where the scale is too small to be used.
        """
        source = self._source(tensor)
        scale = self.scales.get(source.name)
        if scale is None:
            return None
        if scale < affine.SMALLEST_SCALE:
            return 0.0, 0.0
        high = affine.LEVELS * scale
        return (0.0 if _is_not_below_zero(source) else -high), high

    def too_small(self, tensor: Tensor) -> str:
        """Why a tensor whose range is (0, 0) stays in float."""
        scale = self.scales.get(self._source(tensor).name, 0.0)
        smallest = f", below {affine.SMALLEST_SCALE:.0e}, the smallest that is used" if scale else ""
        return f"its input '{tensor.name}' has scale {scale:.2g} in {self.path}{smallest}"

    def _source(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it has a scale, else the nearest with the same values above it that has one."""
        source = tensor
        while source.name not in self.scales and source.inputs and _is(source.inputs[0], SAME_VALUES):
            source = source.inputs[0].inputs[0]
        return source


def read_cache(path: str) -> CalibrationCache:
    """Raises UsageError naming the file, and the line if one is wrong."""
    try:
        with Path(path).open("rb") as file:
            first = file.readline(LONGEST_FIRST_LINE)
            if not FIRST_LINE.fullmatch(first):
                raise UsageError(
                    f"{path}: is no calibration cache of TensorRT; the first line of one is like 'TRT-8601-EntropyCalibration2'"
                )
            rest = file.read()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read the calibration cache ({error.strerror or error}); give the file that a calibrator of TensorRT wrote"
        ) from error
    try:
        text = rest.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: the calibration cache is damaged: it is not text ({error.reason})"
        ) from error
    scales: dict[str, float] = {}
    for number, line in enumerate(text.split("\n"), 2):
        if line.strip():
            name, scale = _entry(f"{path}, line {number}", line)
            if scales.setdefault(name, scale) != scale:
                raise UsageError(
                    f"{path}, line {number}: '{name}' has another scale above; keep one of the lines"
                )
    if not scales:
        raise UsageError(f"{path}: the calibration cache holds no tensor; calibrate again, or give data")
    return CalibrationCache(path, scales)


def unmatched_names(graph: Graph, cache: CalibrationCache) -> list[str]:
    """Names of the cache that no tensor of the graph has. Raises UsageError if no activation has one."""
    tensors = [tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)]
    computed = {tensor.name for tensor in [*graph.inputs, *tensors] if not isinstance(tensor, Constant)}
    if computed.isdisjoint(cache.scales):
        raise UsageError(
            f"{cache.path}: no activation of the model has one of its {len(cache.scales)} names, such as '{next(iter(cache.scales))}'; "
            "give the cache that was made from this model, or calibration data instead"
        )
    names = computed.union(tensor.name for tensor in tensors)
    return [name for name in cache.scales if name not in names]


def tell_of_cache(cache: CalibrationCache, unmatched: Sequence[str], report: PassReport) -> None:
    """How many names there are, and those that no tensor has: the layers that stay in float are told of before."""
    report.metrics["cached_ranges"] = len(cache.scales)
    report.metrics["unmatched_ranges"] = len(unmatched)
    for name in unmatched:
        report.skip(name, f"{cache.path} has a scale for it, and the model here has no tensor of this name")


def _entry(where: str, line: str) -> tuple[str, float]:
    """(tensor, scale) of a line. A name may hold a colon."""
    name, colon, digits = line.rpartition(":")
    if not (colon and name.strip() and DIGITS.fullmatch(digits.strip())):
        raise UsageError(
            f"{where}: is not 'tensor: scale' with the scale in 8 hexadecimal digits or 0, but '{line.strip()[:60]}'; the cache is damaged"
        )
    (scale,) = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))
    if not math.isfinite(scale) or scale < 0:
        raise UsageError(
            f"{where}: the scale of '{name}' is {scale:g}, which is none; take the line out to leave what reads it in float, or calibrate again"
        )
    return name, scale


def _is(node: Node, operators: tuple[str, ...]) -> bool:
    return node.op in operators and not node.domain and bool(node.inputs)


def _is_not_below_zero(tensor: Tensor) -> bool:
    while tensor.inputs and _is(tensor.inputs[0], NEIGHBOURS):
        tensor = tensor.inputs[0].inputs[0]
    if not tensor.inputs or tensor.inputs[0].domain:
        return False
    node = tensor.inputs[0]
    return node.op in NOT_BELOW_ZERO or (is_floor(node) and floor_range(node)[0] == 0)
