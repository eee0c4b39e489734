"""The second moments of what layers read on calibration data, and weights as the rows that these belong to."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.keeping import is_optional_input
from onnx_lathe.passes.graph.layers import Weight, constant_shape
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments
from onnx_lathe.passes.numerics.second_order.windows import Window
from onnx_lathe.protocols import Observed

SAMPLES = 256
"""Calibration samples that are run, or a few more."""
POSITIONS = 128
"""Of each sample, at most so many windows of a convolution, or rows of a matrix."""
FEWER, FEWEST = 4, 32
"""Windows of few inputs, as a depthwise convolution's, say as much in fewer: so many for each input, and at least."""
MOST_INPUTS = 8192
"""Of one response: the moments of more would take gigabytes."""
MOMENT_BYTES = 1 << 28
"""Moments that are streamed at a time."""
SEED = 0
ENOUGH_SAMPLES = 32


def positions_of(inputs: int) -> int:
    """How many rows of one sample tell what its windows of so many inputs are like."""
    return min(POSITIONS, max(FEWEST, FEWER * inputs))


@dataclass(frozen=True)
class Rows:
    """How a weight is [groups, rows, inputs], a row for each output channel, and what its layers read.

    `readers`: the layers' inputs, and how samples of them become rows.
    """

    weight: Weight
    shape: tuple[int, ...]
    groups: int
    first: bool
    """Whether output channels are the weight's first axis, and not its last."""
    windows: tuple[Window | None, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        outputs = self.shape[0] if self.first else self.shape[-1]
        return self.groups, outputs // self.groups, int(np.prod(self.shape)) // outputs

    @property
    def moment_bytes(self) -> int:
        groups, _, inputs = self.sizes
        return 16 * groups * inputs**2

    def of(self, values: np.ndarray) -> np.ndarray:
        """The weight's values, or an array like them, as [groups, rows, inputs]."""
        return (values if self.first else values.T).reshape(self.sizes)

    def back(self, rows: np.ndarray) -> np.ndarray:
        """An array like the weight of [groups, rows, inputs]."""
        if self.first:
            return rows.reshape(self.shape)
        found: np.ndarray = rows.reshape(self.shape[::-1]).T
        return found

    def inputs_of(
        self, window: Window | None, values: np.ndarray, most: int, generator: np.random.Generator
    ) -> Iterator[np.ndarray]:
        """What the layer reads of a sample, or of several, whose values these are: rows [groups, n, inputs], about
        `most` in all.
        """
        if window is not None:
            for image in values:
                yield window.rows(image, max(1, most // len(values)), generator)
            return
        rows = values.reshape(-1, self.sizes[2])
        if len(rows) > most:
            rows = rows[generator.choice(len(rows), most, replace=False)]
        yield rows[None]


def few_samples(what: str, samples: int) -> list[str]:
    """A warning, if they are too few."""
    if samples >= ENOUGH_SAMPLES:
        return []
    return [
        f"{what} had {samples} calibration sample{'s' * (samples > 1)}, which tell little of what layers read; "
        f"give {ENOUGH_SAMPLES} or more"
    ]


def rows_of(weight: Weight, opset: int) -> Rows | str:
    """The weight of Conv, Gemm or MatMul as rows, or why it has none."""
    if weight.place:
        return f"it is in the {weight.place}"
    shape = weight.tensor.shape
    shape = tuple(constant_shape(weight.tensor, opset) if shape is None else shape)
    kinds = {(node.op, node.attrs.get("transB", 0), node.attrs.get("group", 1)) for node in weight.nodes}
    if len(kinds) > 1:
        return "its layers are of several kinds"
    ((op, _, groups),) = kinds
    if op not in ("Conv", "Gemm", "MatMul"):
        return f"what {op} makes of its inputs is not measured"
    if op == "MatMul" and len(shape) != 2:
        return "it is a batch of matrices"
    if any(
        isinstance(node.inputs[0], Constant) or is_optional_input(node.inputs[0]) for node in weight.nodes
    ):
        return "its input is stored in the model"
    if op == "Gemm" and any(node.attrs.get("transA", 0) for node in weight.nodes):
        return "its input is transposed"
    windows = tuple(_window(node, shape) if op == "Conv" else None for node in weight.nodes)
    found = Rows(weight, shape, groups if op == "Conv" else 1, weight.axis == 0, windows)
    if found.sizes[2] > MOST_INPUTS:
        return f"a response has {found.sizes[2]:,} inputs, more than {MOST_INPUTS:,}"
    return found


def _window(node: Node, shape: Sequence[int]) -> Window:
    axes = len(shape) - 2
    auto = node.attrs.get("auto_pad", "NOTSET")
    return Window(
        tuple(shape[2:]),
        tuple(node.attrs.get("strides", [1] * axes)),
        tuple(node.attrs.get("dilations", [1] * axes)),
        tuple(node.attrs.get("pads", [0] * 2 * axes)),
        auto.decode() if isinstance(auto, bytes) else auto,
        node.attrs.get("group", 1),
    )


def input_moments(
    network: onnx.ModelProto,
    layers: Sequence[Rows],
    calibrator: Calibrator,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Rows, SplitMoments]]:
    """The moments of what each layer reads, of as many layers at a time as memory is meant to hold; in order. Of equal
    networks and data they are the same. A layer that never runs has none (a count of 0).
    """
    for group in _together(layers):
        progress(f"measuring what {len(group)} layers read")
        names = list(dict.fromkeys(node.inputs[0].name for one in group for node in one.weight.nodes))
        model = model_up_to(network, names)

        asked = ", ".join(f"{one.weight.name} {one.sizes}" for one in group)
        measure = partial(_measured, group, model, names, calibrator)
        size_bytes = sum(one.moment_bytes for one in group)
        found = calibrator.remembered(model, f"moments of {asked}", measure, size_bytes)
        yield from zip(group, found, strict=True)


def _measured(
    group: Sequence[Rows], model: onnx.ModelProto, names: Sequence[str], calibrator: Calibrator
) -> list[SplitMoments]:
    found = [SplitMoments.of(one.groups, one.sizes[2]) for one in group]
    # of each layer its own: which others are measured changes nothing
    generators = [np.random.default_rng([SEED, zlib.crc32(one.weight.name.encode())]) for one in group]
    samples = 0
    for number, batch in enumerate(calibrator.observe(model, names)):
        for one, moments, generator in zip(group, found, generators, strict=True):
            _add(batch, samples, number, one, moments, generator)
        samples += batch.samples
        if samples >= SAMPLES:
            break
    return [replace(moments, samples=samples) for moments in found]


def _together(layers: Sequence[Rows]) -> Iterator[list[Rows]]:
    group: list[Rows] = []
    size = 0
    for layer in layers:
        if group and size + layer.moment_bytes > MOMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(layer)
        size += layer.moment_bytes
    if group:
        yield group


def _add(
    batch: Observed, first: int, number: int, one: Rows, moments: SplitMoments, generator: np.random.Generator
) -> None:
    """The rows of batch `number`, which begins with the sample `first`."""
    for node, window in zip(one.weight.nodes, one.windows, strict=True):
        values = batch[node.inputs[0].name].astype(np.float32, copy=False)
        for sample, part in by_sample(values, batch):
            most = positions_of(one.sizes[2]) * (batch.samples if sample is None else 1)
            for rows in one.inputs_of(window, part, most, generator):
                if rows.shape[1]:
                    moments.add(rows, number if sample is None else first + sample)


def by_sample(values: np.ndarray, batch: Observed) -> Iterator[tuple[int | None, np.ndarray]]:
    """(place of the sample in the batch, its values), without repeats that fill a fixed batch up; all at once, with
    None, where the first axis is not the batch's.
    """
    if values.ndim < 2 or not len(values) or len(values) % batch.rows:
        yield None, values
        return
    each = len(values) // batch.rows
    for sample in range(batch.samples):
        yield sample, values[sample * each : (sample + 1) * each]
