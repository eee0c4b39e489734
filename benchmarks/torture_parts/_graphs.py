"""Random valid networks: `network(seed)` is one, the same each time.

Convolutions and dense layers with branches that meet again, weights that layers share, recurrent layers, functions, If and
Loop bodies with weights of their own, open and fixed batches, open heights and widths, several inputs and outputs,
integer outputs, odd sizes, initializers that are inputs too, in every opset from 7 to NEWEST. `parts` of the
result says which of them a network has. Their parts are in _graph_blocks.py and _graph_rows.py.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OLDEST, NEWEST = 7, 24
OPEN = -1
"""A size in `Value.shape` that the model leaves open."""
BATCH = 3
"""What an open batch is fed with."""


@dataclass(frozen=True)
class Value:
    """A float32 tensor: its name, and its shape as it is fed."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """`feeds`: a value for every input without a default. `batched`: the inputs whose first axis is the batch, if it is
    open. `few`: no weight has more than 65 values.
    """

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    parts: tuple[str, ...]
    opset: int
    batched: bool
    few: bool

    def more(self, count: int, seed: int) -> dict[str, np.ndarray]:
        """Values of so many samples for every input; only of a network that is batched."""
        random = np.random.default_rng(seed)
        return {
            name: random.standard_normal((count, *value.shape[1:])).astype(np.float32)
            for name, value in self.feeds.items()
        }


@dataclass
class Builder:
    """A graph that grows. `values`: what later nodes may read, newest last."""

    random: np.random.Generator
    opset: int
    few: bool
    batch: int = BATCH
    open_sides: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    integers: list[Value] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    count: int = 0

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def pick(self, *among: Any) -> Any:
        return among[int(self.random.integers(len(among)))]

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; the names of its outputs."""
        made = [self.name(op.lower()) for _ in range(outputs)]
        name = "" if self.chance(0.05) else self.name(op)
        self.nodes.append(helper.make_node(op, inputs, made, name=name or None, **attributes))
        return made

    def one(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> Value:
        return self.keep(Value(self.node(op, inputs, **attributes)[0], shape))

    def keep(self, value: Value) -> Value:
        self.values.append(value)
        return value

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """An initializer of normal values, of a spread that keeps activations near 1; or a Constant."""
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        spread = scale if scale is not None else 1.4 / np.sqrt(max(fan, 1))
        if self.few:
            values = self.random.integers(-32, 33, shape) / 16 * spread
        else:
            values = self.random.standard_normal(shape) * spread
            if len(shape) > 1 and self.chance(0.2):  # channels of many sizes, one of them dead
                rows = np.exp(self.random.standard_normal(shape[0]) * 0.7)
                rows[int(self.random.integers(shape[0]))] *= self.pick(0, 1)
                values = values * rows.reshape(-1, *[1] * (len(shape) - 1))
        return self.stored(values.astype(np.float32))

    def positive(self, size: int) -> str:
        return self.stored((0.5 + self.random.integers(0, 17, size) / 16).astype(np.float32))

    def stored(self, values: Any, stem: str = "w") -> str:
        values, name = np.asarray(values), self.name(stem)
        if self.chance(0.1) and (values.dtype.kind == "f" or self.opset >= 9):  # before, floats alone
            self.nodes.append(
                helper.make_node(
                    "Constant", [], [name], self.name("Constant"), value=numpy_helper.from_array(values)
                )
            )
        else:
            self.weights[name] = values
        return name

    def whole(self, *values: int) -> str:
        return self.stored(np.array(values, np.int64), "i")

    def fed(self, shape: tuple[int, ...], stem: str = "x") -> Value:
        """An input of the model."""
        name = self.name(stem)
        self.feeds[name] = self.random.standard_normal(shape).astype(np.float32)
        said: list[Any] = list(shape)
        if self.batch == BATCH:
            said[0] = "N"
        if self.open_sides and len(shape) == 4:
            said[2:] = ["H", "W"]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, said))
        return self.keep(Value(name, shape))


def network(seed: int | tuple[int, ...], opset: int | None = None) -> Network:
    """The network of a seed; `opset`: of that, instead of a random one. The checker has passed it."""
    from torture_parts._graph_blocks import flatten
    from torture_parts._graph_rows import grow

    random = np.random.default_rng(seed)
    drawn = int(random.integers(OLDEST, NEWEST + 1))
    build = Builder(random, opset or drawn, few=bool(random.random() < 0.3))
    build.batch = BATCH if build.chance(0.7) else int(random.integers(1, 4))
    pictures = build.chance(0.7)
    if pictures:
        build.open_sides = build.chance(0.15)
        sides = [int(side) for side in random.integers(6, 14, 2)]
        start = build.fed((build.batch, int(random.integers(1, 5)), *sides))
    else:
        start = build.fed((build.batch, int(random.integers(3, 30))))
    if build.chance(0.3):
        build.parts.add("several inputs")
        other = build.fed(start.shape)
        start = build.one(build.pick("Add", "Sub", "Mul", "Max"), [start.name, other.name], start.shape)
    value = start
    for _ in range(int(random.integers(2, 9))):
        value = grow(build, value)
    if len(value.shape) == 4 and build.chance(0.8):
        value = flatten(build, value)
        for _ in range(int(random.integers(0, 4))):
            value = grow(build, value)
    return finished(build, value)


def finished(build: Builder, last: Value) -> Network:
    """The model: with outputs, inputs that have defaults, types of what shape inference knows."""
    outputs = [last.name]
    fed = {value.name for value in build.inputs}
    for value in build.values[:-1]:
        if value.name not in fed and value.name not in outputs and build.chance(0.12):
            outputs.append(value.name)
    if build.integers:
        outputs += [value.name for value in build.integers[:1]]
    if len(outputs) > 1:
        build.parts.add("several outputs")
    old = build.opset < 9
    optional = []
    for name, values in build.weights.items():
        if old or build.chance(0.04):
            build.parts.add("initializers as inputs")
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            optional.append(helper.make_tensor_value_info(name, kind, values.shape))
    graph = helper.make_graph(
        _live(build.nodes, outputs),
        "random",
        [*build.inputs, *optional],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in build.weights.items()],
    )
    opsets = [helper.make_opsetid("", build.opset)]
    if build.functions:
        opsets.append(helper.make_opsetid("own", 1))
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=3 if old else 10, functions=build.functions
    )
    inferred = {
        value.name: value.type
        for value in onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output
    }
    whole = {value.name for value in build.integers}
    shapes = {value.name: value.shape for value in (*build.values, *build.integers)}
    for value in model.graph.output:
        value.type.CopyFrom(inferred[value.name])
        kind = value.type.tensor_type
        if not kind.elem_type or not kind.HasField("shape"):  # what a function or a loop gives
            value.type.CopyFrom(
                helper.make_tensor_type_proto(
                    TensorProto.INT64 if value.name in whole else TensorProto.FLOAT,
                    [None] * len(shapes[value.name]),
                )
            )
    onnx.checker.check_model(model, full_check=True)
    batched = build.batch == BATCH and "flag" not in build.feeds
    return Network(model, build.feeds, tuple(sorted(build.parts)), build.opset, batched, build.few)


def _live(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """A network has few nodes that nothing reads, but some: every third is left."""
    needed = set(outputs)
    kept = []
    for place, node in enumerate(reversed(nodes)):
        if needed.intersection(node.output) or place % 3 == 0:
            kept.append(node)
            needed.update(node.input)
            needed.update(name for body in _bodies(node) for inside in body.node for name in inside.input)
    return kept[::-1]


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
