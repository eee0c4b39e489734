"""Where channels can be scaled without changing the network: every unit u of channels may carry x / s_u in
place of x, for any s_u > 0.

    Conv(x, W)    reads W[:, i] * s_i, writes W[o] / s_o and bias[o] / s_o
    Relu(x / s)   is Relu(x) / s, and so is every operator that is positively homogeneous: pooling, addition of what is scaled alike, ...
    BN(x / s)     is BN(x) with mean / s and scale * s, and its output / t with scale / t and shift / t

Channels are followed as channel pruning follows them (state.py): a unit is all that has to carry one scale.
Other than there, depthwise convolutions and normalizations may write another scale than they read, and what
cannot take a scale is locked, with the reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.coupling import rules as rules
from onnx_lathe.passes.graph.coupling.state import OTHER, READ, Coupling, LayerUse
from onnx_lathe.passes.graph.gates import clip_range
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant, is_layer, not_float
from onnx_lathe.passes.graph.rewire import captured_names
from onnx_lathe.passes.graph.shapes import infer_types

KEEP, CHANNELS, DROP = "keep", "channels", "drop"
CLIPS = (KEEP, CHANNELS, DROP)
"""What becomes of a Clip with bounds: its channels keep their scale, it gets bounds per channel, or it
loses a rarely met upper one.
"""

RARE = 1e-4
"""Largest share of values above an upper bound with which a network hardly notices that the bound is gone."""

UNBOUNDED = 3.4e38
BROADCASTING = 8
"""The first opset whose Max and Min take bounds per channel."""

TIMES, OVER = 1, -1


@dataclass(frozen=True)
class Factor:
    """An axis of a parameter that is multiplied (TIMES) or divided (OVER) by the scales of `units`.

    `units` has one for every position; for the inputs of a grouped convolution it is [groups, positions],
    for equal blocks of rows.
    """

    axis: int
    power: int
    units: np.ndarray


@dataclass(frozen=True)
class Block:
    """A layer's weight as groups of matrices: `written` [G, R] are the units of the rows, `read` [G, C]
    those of the columns, or None.

    For a normalization, it is its scale: a group per channel.
    """

    node: Node
    written: np.ndarray
    read: np.ndarray | None


@dataclass(frozen=True)
class Bounds:
    """A Clip whose channels may be scaled: its bounds, the channels' units, and how many axes follow
    theirs.
    """

    node: Node
    low: float
    high: float
    units: np.ndarray
    behind: int


@dataclass
class Scaling(Coupling):
    """What the analysis found. A unit without a lock can take any scale."""

    clip: str = KEEP
    above: Mapping[str, float] = field(default_factory=dict)
    """Name of a Clip -> share of the calibration values that are above its upper bound."""
    blocks: list[Block] = field(default_factory=list)
    clips: list[Bounds] = field(default_factory=list)
    parameters: dict[str, tuple[Constant, list[Factor]]] = field(default_factory=dict)
    """Name -> initializer and what its axes are multiplied by."""
    _factors: dict[str, dict[tuple[int, int], tuple[Constant, list[Factor]]]] = field(default_factory=dict)

    def slot(self, node: Node, index: int, axis: int, units: np.ndarray, role: str = OTHER) -> None:
        """Takes what the rules of coupling say of the node's input `index`, an initializer, as a factor."""
        self.factor(node, index, axis, units, TIMES if role == READ else OVER)

    def factor(self, node: Node, index: int, axis: int, units: np.ndarray, power: int) -> None:
        tensor = node.inputs[index]
        if tensor.dtype != np.float32:
            self.units.lock(units, f"its parameter {tensor.name} is {tensor.dtype}, not float32")
            return
        self._uses.setdefault(tensor.name, set()).add((id(node), index))
        readers = self._factors.setdefault(tensor.name, {})
        readers.setdefault((id(node), index), (tensor, []))[1].append(Factor(axis, power, units))

    def agree(self) -> None:
        """Readers of one parameter have to want the same of it; where they do not, all their channels are
        locked.
        """
        captured = captured_names(self.graph)
        for name, readers in self._factors.items():
            (tensor, first), *others = readers.values()
            reason = self._seen(tensor, captured)
            for _, factors in others:
                if _forms(factors) != _forms(first):
                    reason = reason or f"its parameter {name} has two uses"
                    continue
                for one, other in zip(first, factors, strict=True):
                    self.units.tie(one.units, other.units)
            if reason is not None:
                for _, factors in readers.values():
                    for one in factors:
                        self.units.lock(one.units, reason)
            self.parameters[name] = tensor, first


def _forms(factors: list[Factor]) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(one.axis, one.power, one.units.shape) for one in factors]


def find_scaling(graph: Graph, clip: str, above: Mapping[str, float] | None = None) -> Scaling:
    """The units of the main graph that can be scaled. Nothing is changed. `clip` is one of CLIPS, `above`
    as in Scaling.
    """
    scaling = Scaling(graph, infer_types(graph), clip=clip, above=above or {})
    for node in graph.nodes:
        channels = any(scaling.of(tensor) is not None for tensor in node.inputs)
        rule = None if node.domain else _RULES.get(node.op)
        if is_layer(node):
            reason = _layer(scaling, node)
        elif rule is not None and (channels or node.op in _BIRTHS):
            reason = rule(scaling, node)
        elif channels:
            reason = f"{node.name} ({node.op}) does not commute with scaling"
        else:
            continue
        if reason is not None:
            scaling.lock(node.inputs, reason)
    scaling.lock_what_others_see()
    scaling.agree()
    return scaling


def _layer(scaling: Scaling, node: Node) -> str | None:
    weight, source = node.inputs[WEIGHT_INPUT], scaling.of(node.inputs[0])
    if is_constant(weight) and (reason := not_float(weight, "equalize")):
        return f"{node.name} reads it, and {reason}"
    groups = int(node.attrs.get("group", 1))
    if (
        groups > 1
        and isinstance(weight, Constant)
        and groups == (weight.shape[1] * groups if node.op == "Conv" else weight.shape[0])
    ):
        if reason := rules.unusable(scaling, node, source):
            return reason
        _depthwise(scaling, node, groups, weight.shape)
    elif reason := rules.layer(scaling, node):
        return reason
    written = scaling.births[-1][1]
    bias = node.inputs[rules.BIAS_INPUT] if len(node.inputs) > rules.BIAS_INPUT else None
    if isinstance(bias, Constant) and (id(node), rules.BIAS_INPUT) not in scaling._uses.get(bias.name, ()):
        scaling.units.lock(written, f"all its channels share the bias {bias.name}")
    columns = None if source is None else source.units.reshape(groups, -1)
    scaling.blocks.append(Block(node, written.reshape(groups, -1), columns))
    return None


def _depthwise(scaling: Scaling, node: Node, groups: int, shape: Sequence[int]) -> None:
    """Each group reads one channel, and writes channels of a scale of their own."""
    source, born = scaling.of(node.inputs[0]), scaling.units.fresh(shape[0])
    scaling.factor(node, WEIGHT_INPUT, 0, born, OVER)
    if source is not None:
        scaling.factor(node, WEIGHT_INPUT, 0, np.repeat(source.units, shape[0] // groups), TIMES)
    written = born if node.op == "Conv" else np.repeat(born, shape[1])
    if len(node.inputs) > rules.BIAS_INPUT and not node.inputs[rules.BIAS_INPUT].is_empty():
        rules.bias_of_layer(scaling, node, written)
    scaling.put(node.outputs, 1, written)
    scaling.births.append((node, written))
    scaling.layers.append(LayerUse(node, source))


def _batch_normalization(scaling: Scaling, node: Node) -> str | None:
    """scale * (x - mean) / sqrt(variance + epsilon) + shift: the variance stays, so that epsilon does."""
    source = scaling.of(node.inputs[0])
    if source is not None and source.axis != 1:
        return f"{node.name} normalizes over its channels"
    if node.attrs.get("training_mode", 0):
        return f"{node.name} is in training mode"
    if not all(isinstance(tensor, Constant) for tensor in node.inputs[1:]):
        return f"{node.name} has parameters that are computed at run time; fold first"
    written = _born(scaling, node, 1, 1)
    if source is not None:
        scaling.factor(node, 1, 0, source.units, TIMES)
        scaling.factor(node, 3, 0, source.units, OVER)
    scaling.factor(node, 2, 0, written, OVER)
    return None


def _normalization(scaling: Scaling, node: Node) -> str | None:
    """Layer, root-mean-square or instance normalization: its input cannot be scaled channel by channel, its
    output can.
    """
    shape = scaling.shape(node.inputs[0])
    given = [tensor for tensor in node.inputs[1:] if not tensor.is_empty()]
    if (
        shape
        and given
        and all(
            isinstance(tensor, Constant) and len(tensor.shape) == 1 and tensor.shape[0] > 1
            for tensor in given
        )
    ):
        written = _born(scaling, node, 1, 1 if node.op == "InstanceNormalization" else len(shape) - 1)
        for index in range(2, 1 + len(given)):
            scaling.factor(node, index, 0, written, OVER)
    return f"{node.name} normalizes it"


def _born(scaling: Scaling, node: Node, index: int, axis: int) -> np.ndarray:
    """New units for the elements of the node's vector `index`, by which it multiplies what it writes."""
    written = scaling.units.fresh(int(node.inputs[index].shape[0]))
    scaling.factor(node, index, 0, written, OVER)
    scaling.put(node.outputs[:1], axis, written)
    scaling.births.append((node, written))
    scaling.blocks.append(Block(node, written[:, None], None))
    return written


def _product(scaling: Scaling, node: Node) -> str | None:
    """One operand has channels, and the other multiplies (or divides) them by whatever it likes."""
    found = [tensor for tensor in node.inputs if scaling.of(tensor) is not None]
    output = scaling.shape(node.outputs[0])
    if not found:
        return None
    source, shape = scaling.of(found[0]), scaling.shape(found[0])
    if len(found) > 1 or (node.op == "Div" and found[0] is not node.inputs[0]) or source is None:
        return f"{node.name} computes a {'quotient' if node.op == 'Div' else 'product'} with it"
    axis = None if output is None or shape is None else source.axis + len(output) - len(shape)
    if output is None or axis is None or output[axis] != source.units.size:
        return f"the shape of what {node.name} computes is not known"
    scaling.put(node.outputs, axis, source.units)
    return None


def _sum(scaling: Scaling, node: Node) -> str | None:
    """Addition, maximum and the like: all operands are scaled alike, so each needs an element per channel,
    or is zero.
    """
    joined = rules.elementwise(scaling, node)
    if joined is not None:
        return joined
    result, shape = scaling.of(node.outputs[0]), scaling.shape(node.outputs[0]) or ()
    for tensor in node.inputs:
        if result is None or tensor.is_empty() or scaling.of(tensor) is not None:
            continue
        own = scaling.shape(tensor) or ()
        axis = result.axis - len(shape) + len(own)
        if (axis < 0 or own[axis] == 1) and not (isinstance(tensor, Constant) and not np.any(read(tensor))):
            scaling.units.lock(
                result.units, f"{node.name} joins it with {tensor.name}, which all channels share"
            )
    return None


def _pad(scaling: Scaling, node: Node) -> str | None:
    value = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if value is not None and not (isinstance(value, Constant) and not np.any(read(value))):
        return f"{node.name} pads it with another value than zero"
    return rules.RULES["Pad"](scaling, node)


def _clip(scaling: Scaling, node: Node) -> str | None:
    first, last = clip_range(node)
    if first is None or last is None:
        return f"{node.name} clips it at a bound that is computed at run time"
    low, high = (
        math.copysign(math.inf, bound) if abs(bound) > UNBOUNDED else bound for bound in (first, last)
    )
    if low in (-math.inf, 0) and high in (0, math.inf):
        return rules.same(scaling, node)
    if scaling.clip == KEEP:
        return f"{node.name} clips all channels at {low:g} and {high:g}; give clip=channels or clip=drop"
    if scaling.clip == CHANNELS and scaling.graph.opset < BROADCASTING:
        return f"{node.name} cannot get bounds per channel below opset {BROADCASTING}; give clip=drop"
    if scaling.clip == DROP and (low != 0 or high == math.inf):
        return f"{node.name} does not become a Relu without its upper bound"
    if scaling.above.get(node.name, 0.0) > RARE:
        return f"{node.name} keeps its upper bound, {high:g}: {scaling.above[node.name]:.2%} of the calibration values are above"
    source, shape = scaling.of(node.inputs[0]), scaling.shape(node.inputs[0])
    if source is None or shape is None:
        return f"the rank of what {node.name} clips is not known"
    scaling.clips.append(Bounds(node, low, high, source.units, len(shape) - 1 - source.axis))
    return rules.same(scaling, node)


_HOMOGENEOUS = """
Abs Concat Dropout Flatten Identity LeakyRelu Neg PRelu ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Slice
Split Squeeze Transpose Unsqueeze Upsample AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool
"""
_SUMS = ("Add", "Max", "Mean", "Min", "Sub", "Sum")
_NORMALIZATIONS = ("InstanceNormalization", "LayerNormalization", "RMSNormalization")
_BIRTHS = ("BatchNormalization", *_NORMALIZATIONS)
"""Operators that write channels of a scale of their own, whatever they read."""

_RULES: Mapping[str, Callable[[Scaling, Node], str | None]] = {
    **{op: rules.RULES[op] for op in _HOMOGENEOUS.split()},
    "PRelu": rules.same,
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(_NORMALIZATIONS, _normalization),
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Pad": _pad,
}
