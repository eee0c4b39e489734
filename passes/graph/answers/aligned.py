"""What layers read and what they should answer, layer by layer, while a pass changes them."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.answers.walk import Walk
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.input_moments import SEED, Rows, by_sample, positions_of, rows_of
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.graph.quantization.bias_places import bias_place
from onnx_lathe.passes.numerics.second_order.kept_rows import Activation, SplitRows
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.numerics.second_order.windows import chosen
from onnx_lathe.protocols import Observed

SAMPLES = 128
"""Calibration samples that are run, or a few more."""


NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Layer:
    """A layer that is changed, by the weight that it alone reads. `adder`: what adds its bias, the layer itself or an Add
    behind it. `kept`: which of the channels that the other network answers the layer still has, bool; none: all.
    `total`: an addition of something else behind that, whose result is compared then; `doubtful`: unless that has another
    form than what the layer answers, which only running it tells; `activation`: what is behind all.
    """

    node: Node
    rows: Rows
    adder: Node
    kept: np.ndarray | None = None
    total: Node | None = None
    doubtful: bool = False
    activation: Activation | None = None

    @property
    def response(self) -> str:
        return str(self.node.outputs[0].name)

    @property
    def answer(self) -> str:
        """What is compared: the response, its bias included, and what else is added."""
        return str((self.total or self.adder).outputs[0].name)

    @property
    def compared(self) -> tuple[str, ...]:
        """What the other network is asked for: `answer`, and what stands in for it where it does not fit."""
        return (self.answer, str(self.adder.outputs[0].name)) if self.doubtful else (self.answer,)

    @property
    def given(self) -> str | None:
        """What else is added."""
        if self.total is None:
            return None
        own = self.adder.outputs[0]
        return next(str(one.name) for one in self.total.inputs if one is not own)

    @property
    def source(self) -> str:
        return str(self.node.inputs[0].name)

    def asked(self, answered: np.ndarray) -> np.ndarray:
        """Of what the other network answers, what this layer should."""
        axis = 1 if self.node.op == "Conv" else answered.ndim - 1
        if self.kept is None or answered.ndim <= axis or answered.shape[axis] != self.kept.size:
            return answered
        return np.compress(self.kept, answered, axis)


def layer_of(graph: Graph, weight: Weight) -> Layer | str:
    """The layer of the weight, or why what it reads and answers does not tell what its weight and bias should be."""
    rows = rows_of(weight, graph.opset)
    if len(weight.nodes) > 1:
        return "its weight is shared by several layers"
    if isinstance(rows, str):
        return rows
    (node,) = weight.nodes
    place = bias_place(graph, node)
    if place is None:
        # of another operator nothing is added before its answer is compared
        added = node.op in ("Conv", "Gemm") and len(node.inputs) > BIAS_INPUT
        return (
            "its bias cannot be changed"
            if added and not node.inputs[BIAS_INPUT].is_empty()
            else Layer(node, rows, node)
        )
    tensor, channels = place.tensor, rows.sizes[0] * rows.sizes[1]
    if tensor is not None and not tensor.is_empty():
        size = math.prod(tensor.shape)
        # a column of a Gemm may have as many: one for each sample
        if size != 1 and (size, tensor.shape[-1]) != (channels, channels):
            return "its bias is no number for each output channel"
    return Layer(node, rows, place.adder)


def answers(
    graph: Graph,
    layers: Sequence[Layer],
    original: onnx.ModelProto,
    calibrator: Calibrator,
    since: Mapping[str, str] = NOTHING,
) -> Iterator[tuple[Layer, SplitJointMoments | str]]:
    """For each layer, in the order of the graph, what it reads in the graph as it is then, and what `original` answers
    in its place; or why that cannot be told. The graph's layers may be changed between two steps, no others.
    `since`: by what a layer writes, the earliest tensor that changes until the next layer, where earlier layers change too.
    """
    if not layers:
        return
    held = [calibrator.held(export_model(graph), SAMPLES), calibrator.held(original, SAMPLES)]
    now = Walk(held[0], [tuple(filter(None, (layer.source, layer.given))) for layer in layers])
    wanted = Walk(held[1], [layer.compared for layer in layers])
    for place, layer in enumerate(layers):
        sizes = _sizes(layer.rows)
        found = SplitJointMoments.of(*sizes)
        seed = [SEED, zlib.crc32(layer.rows.weight.name.encode())]
        generator = np.random.default_rng(seed)
        reason, samples = None, 0
        pairs = zip(
            now.observe(export_model(graph), place, since.get(layer.response, layer.response)),
            wanted.observe(original, place),
            strict=True,
        )
        for number, (x, y) in enumerate(pairs):
            if number == 0:
                layer = _fitting(layer, x, y)
                if layer.activation is not None:
                    own = np.random.default_rng([*seed, 1])
                    found.rows = SplitRows(layer.activation, SAMPLES, *sizes, own)
            if reason is None:
                reason = _add(layer, x, y, samples, number, found, generator)
            samples += x.samples
        found.settle()
        found.samples = samples
        yield layer, reason or found


def _sizes(rows: Rows) -> tuple[int, int, int]:
    groups, outputs, inputs = rows.sizes
    return groups, inputs, outputs


def _fitting(layer: Layer, read: Observed, answered: Observed) -> Layer:
    """Held to its own answer alone, if the sum turns out to be of another form."""
    if not layer.doubtful or _is_answer(layer, read[layer.source], layer.asked(answered[layer.answer])):
        return layer
    return replace(layer, total=None, doubtful=False, activation=None)


def _is_answer(layer: Layer, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether y is of the form of what the layer answers to x."""
    groups, outputs, inputs = layer.rows.sizes
    window = layer.rows.windows[0]
    positions = None if window is None else window.positions(x.shape[2:])
    if positions is None:
        return y.size // max(y.shape[-1], 1) == x.size // inputs and y.shape[-1] == outputs
    return y.shape[1:] == (groups * outputs, *positions) and len(y) == len(x)


def _add(
    layer: Layer,
    read: Observed,
    answered: Observed,
    first: int,
    number: int,
    found: SplitJointMoments,
    generator: np.random.Generator,
) -> str | None:
    """Takes the rows of batch `number`, which begins with the sample `first`; or says why the two do not belong together."""
    x = read[layer.source].astype(np.float32, copy=False)
    y = layer.asked(answered[layer.answer]).astype(np.float32, copy=False)
    added = None if layer.given is None else read[layer.given].astype(np.float32, copy=False)
    groups, outputs, inputs = layer.rows.sizes
    window = layer.rows.windows[0]
    positions = None if window is None else window.positions(x.shape[2:])
    if not _is_answer(layer, x, y):
        return f"the original answers {list(y.shape)} there, which is another form"
    pair = [y] if added is None else [y, np.broadcast_to(added, y.shape)]
    if positions is None:
        pair = [one.reshape(-1, outputs) for one in pair]
    start = 0
    for sample, part in by_sample(x, read):
        place = number if sample is None else first + sample
        most = positions_of(inputs) * (read.samples if sample is None else 1)
        count = part.size // inputs if window is None else len(part)
        asked = [one[start : start + count] for one in pair]
        start += count
        if window is None or positions is None:
            rows = chosen(count, most, generator)
            wanted, *given = (one[rows][None] for one in asked)
            found.add(part.reshape(-1, inputs)[rows][None], wanted, place, *given)
            continue
        for image, *images in zip(part, *asked, strict=True):
            places = chosen(math.prod(positions), max(1, most // count), generator)
            if places.size:
                wanted, *given = (
                    one.reshape(groups, outputs, -1)[:, :, places].transpose(0, 2, 1) for one in images
                )
                found.add(window.rows_at(image, places), wanted, place, *given)
    return None
