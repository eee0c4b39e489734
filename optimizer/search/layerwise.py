"""Candidates put together of layers that were changed before: a pass that treats each layer by itself gives a layer
the same values whatever its neighbours get, so one run serves every candidate that has a layer in common with it.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.space import Dimension, Settings, Space, Value
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.input_moments import Rows, input_moments, rows_of
from onnx_lathe.passes.graph.layers import constant_value, weights
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.graph.quantization.bias_places import bias_place, own_bias
from onnx_lathe.passes.numerics.second_order.moments import response_energy

KEPT_BYTES = 1 << 30
FEW = 256
"""Distinct values up to which a tensor's code is that of a codebook."""
SIGN_AND_EXPONENT = 9
FLOAT_BITS = 27.0
"""What a packed float32 weight takes, about: exponents and signs repeat, mantissas do not."""

ALONE = {"prune": {"clean": False}}
"""Options without which a pass looks at a layer's neighbours: what nothing reads is zero first, and that depends on
them. In the recipe it stays, and is taken as no worse.
"""

Key = tuple[Value, ...]


def is_local(step: Call) -> bool:
    """Whether the pass, with these options, gives each layer what it would get alone."""
    options = step.options
    if options.get("training") is not None or options.get("sensitivity"):
        return False
    if step.name == "prune":
        return options.get("scope", "layer") == "layer" and options.get("score") != "obs"
    if step.name == "codebook":
        apart = options.get("share", "tensor") != "network" and not options.get("sequential")
        return apart and options.get("min_sqnr") is None
    return False


def compensates(step: Call) -> bool:
    """Whether the pass changes a layer by what it answers on calibration data, and its bias with it."""
    return step.options.get("rounding", "nearest") != "nearest"


@dataclass(frozen=True)
class Changed:
    """A layer's weight as a pass left it, float32, and about what it takes in a packed file; its bias, if that moves
    with it.
    """

    values: np.ndarray
    packed_bytes: float
    bias: np.ndarray | None = None


class Composer:
    """Candidates of `space`, whose steps are all local, on a model."""

    def __init__(
        self,
        model: onnx.ModelProto,
        space: Space,
        alone: bool = False,
        context: Callable[[], Context] = Context,
        bias_of: Mapping[str, str] | None = None,
    ) -> None:
        """`alone`: weights that the space is not about stay as they are. `bias_of`: the bias of each layer, where it
        moves with the weight.
        """
        self.space, self.alone, self.context = space, alone, context
        self.bias_of = bias_of or {}
        self._model = model
        self._made = onnx.ModelProto()
        self._made.CopyFrom(model)
        self._tensors = {tensor.name: tensor for tensor in self._made.graph.initializer}
        self._known: OrderedDict[tuple[str, Key], Changed] = OrderedDict()
        self._bytes = 0
        self._by_layer: dict[str, list[Dimension]] = {}
        for one in space.dimensions:
            if one.layer:
                self._by_layer.setdefault(one.layer, []).append(one)
        self._global = [one for one in space.dimensions if not one.layer]
        self._others_of: Key | None = None
        given = any(step.options.get("biases") for step in space.steps)
        self._biases = {
            name: onnx.numpy_helper.to_array(tensor)
            for name, tensor in self._tensors.items()
            if given
            and len(tensor.dims) == 1
            and name not in self._by_layer
            and name not in self.bias_of.values()
        }
        """Those that no run has changed so far, as they are."""

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        space: Space,
        alone: bool = False,
        context: Callable[[], Context] = Context,
    ) -> "Composer | None":
        """None if a step is not local, or a layer's weight is no float32 initializer of the main graph; `alone` also if
        biases change with their layer; and if biases move with weights, but a layer has none of its own.
        """
        stored = {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
        layers = {one.layer for one in space.dimensions if one.layer}
        biases = alone and any(step.options.get("biases") for step in space.steps)
        if not layers or not layers <= stored or biases or not all(map(is_local, space.steps)):
            return None
        moving = any(map(compensates, space.steps))
        bias_of = _biases_of(model, layers) if moving else {}
        # what a step before changes, layers behind it answer otherwise
        if moving and (len(space.steps) > 1 or bias_of.keys() != layers):
            return None
        return cls(model, space, alone, context, bias_of)

    def single(self) -> "Composer":
        """Of the same model and space, with weights that the space is not about as they are; knows what this one has
        found.
        """
        other = Composer(self._model, self.space, True, self.context, self.bias_of)
        other.share(self)
        return other

    def share(self, other: "Composer") -> None:
        """Knows what another one of the same model and space has found."""
        self._known = other._known

    def layer(self, name: str, settings: Settings) -> Changed:
        """What the layer becomes."""
        key = self._key(name, settings)
        if (name, key) not in self._known:
            self._run(name, key, settings)
        self._known.move_to_end((name, key))
        return self._known[name, key]

    def candidate(self, settings: Settings) -> onnx.ModelProto:
        """The model, dense: it computes what the passes' own result does. It is good until the next call."""
        for name in self._by_layer:
            for tensor in self._tensors_of(name, settings):
                self._tensors[tensor.name].CopyFrom(tensor)
        return self._made

    def harm(self, name: str, changed: Changed) -> float:
        """To what the noise that the layer adds is nearly proportional: its weights' squared change, or, where it
        compensates, its responses'.
        """
        change = changed.values.astype(np.float64) - onnx.numpy_helper.to_array(self._stored[name])
        if name not in self._moments:
            return float(np.square(change).sum())
        rows, covariance = self._moments[name]
        return response_energy(rows.of(change).astype(np.float32), covariance)

    @cached_property
    def _stored(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self._model.graph.initializer}

    @cached_property
    def _moments(self) -> dict[str, tuple[Rows, np.ndarray]]:
        """By layer, how its weight is in rows, and the covariance of its inputs, float32: those of all layers are kept, and
        of a network of wide ones they take as much as several copies of it.
        """
        if not self.bias_of:
            return {}
        graph = import_model(self._model)
        found = [
            rows
            for weight in weights(graph, lambda node, reason: None)
            if weight.name in self._by_layer and isinstance(rows := rows_of(weight, graph.opset), Rows)
        ]
        measured = input_moments(self._model, found, self.context().need_calibrator())
        return {
            rows.weight.name: (rows, moments.judging(centered=True).astype(np.float32))
            for rows, moments in measured
            if moments.refusal(centered=True) is None
        }

    def packed_bytes(self, settings: Settings) -> float:
        """Of the layers that the space is about; others are the same in every candidate."""
        return sum(self.layer(name, settings).packed_bytes for name in self._by_layer)

    def _tensors_of(self, name: str, settings: Settings) -> list[onnx.TensorProto]:
        """The layer's weight, and its bias if that moves with it."""
        bias = self.bias_of.get(name)
        if self.alone and not any(settings[one.name] for one in self._by_layer[name]):
            return [self._stored[one] for one in (name, bias) if one]
        found = self.layer(name, settings)
        made = [onnx.numpy_helper.from_array(found.values, name)]
        if bias and found.bias is not None:
            made.append(onnx.numpy_helper.from_array(found.bias, bias))
        return made

    def _key(self, name: str, settings: Settings) -> Key:
        return tuple(settings[one.name] for one in (*self._global, *self._by_layer[name]))

    def _run(self, name: str, key: Key, settings: Settings) -> None:
        """The steps, after which every layer is known as these settings have it; if one layer alone is changed, with
        its strengths for every layer that has the same dimensions.
        """
        alike = self._alike(name, settings) if self.alone else settings
        model = self._model
        for step in self.space.calls(alike):
            options = {**step.options, **ALONE.get(step.name, {})}
            model, _ = apply_pass(configure(find(step.name), options), model, self.context())
        graph = import_model(model)
        found = weights(graph, lambda node, reason: None, bodies=True, everywhere=True)
        stored = {one.name: one for one in model.graph.initializer} if self.bias_of else {}
        for weight in found:
            if weight.name in self._by_layer:
                values = np.asarray(constant_value(weight.tensor, graph.opset), np.float32)
                bias = self.bias_of.get(weight.name)
                moved = None if bias is None else onnx.numpy_helper.to_array(stored[bias])
                self._keep(weight.name, self._key(weight.name, alike), values, moved)
            elif not self.alone and self._others_of is None and weight.name in self._tensors:
                values = np.asarray(constant_value(weight.tensor, graph.opset), np.float32)
                self._tensors[weight.name].CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        if not self.alone:
            self._take_biases(model)
        self._others_of = key

    def _take_biases(self, model: onnx.ModelProto) -> None:
        """Those that the passes made few or rounded: they are the same in every candidate, but where their layer is
        left alone.
        """
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 1 and tensor.name in self._biases:
                values = onnx.numpy_helper.to_array(tensor)
                if not np.array_equal(values, self._biases[tensor.name]):
                    self._tensors[tensor.name].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
                    del self._biases[tensor.name]

    def _alike(self, name: str, settings: Settings) -> Settings:
        own = {(one.step, one.option): settings[one.name] for one in self._by_layer[name]}
        alike = dict(settings)
        for one in self.space.dimensions:
            if one.layer and (value := own.get((one.step, one.option))) in one.levels:
                alike[one.name] = value
        return alike

    def _keep(self, name: str, key: Key, values: np.ndarray, bias: np.ndarray | None) -> None:
        if (name, key) in self._known:
            self._known.move_to_end((name, key))
            return
        self._known[name, key] = Changed(np.ascontiguousarray(values), packed_estimate(values), bias)
        self._bytes += values.nbytes
        while self._bytes > KEPT_BYTES and len(self._known) > len(self._by_layer):
            self._bytes -= self._known.popitem(last=False)[1].values.nbytes


def _biases_of(model: onnx.ModelProto, layers: Collection[str]) -> dict[str, str]:
    """Layer -> its bias, an initializer that moves where it stands."""
    graph, found = import_model(model), {}
    for weight in weights(graph, lambda node, reason: None):
        if weight.name not in layers:
            continue
        place = bias_place(graph, weight.nodes[0]) if len(weight.nodes) == 1 else None
        bias = None if place is None else own_bias(graph, place, weight.tensor.shape[weight.axis])
        if bias is not None:
            found[weight.name] = str(bias.name)
    return found


def packed_estimate(values: np.ndarray) -> float:
    """Bytes of an ideal code for each value by itself, and of the table of values. The packed file's own code also
    looks at neighbours and gains some per cent by that.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= FEW:
        return (_entropy(counts) * values.size + _value_bits(distinct) * distinct.size) / 8
    zeros = values.size - int(np.count_nonzero(values))
    where = _entropy(np.array([zeros, values.size - zeros])) * values.size
    return (where + FLOAT_BITS * (values.size - zeros)) / 8


def _value_bits(values: np.ndarray) -> int:
    """Of each value in a table: as many bits of mantissa as one of them has, which codebook(mantissa=7) makes few."""
    used = int(np.bitwise_or.reduce(values.astype(np.float32).view(np.uint32), initial=0)) & 0x7FFFFF
    return SIGN_AND_EXPONENT + (24 - (used & -used).bit_length() if used else 0)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum()) if counts.sum() else 0.0


def combinations(space: Space, layer: str) -> list[dict[str, Value]]:
    """Every setting of one layer's dimensions, by dimension."""
    found: list[dict[str, Value]] = [{}]
    for one in space.dimensions:
        if one.layer == layer:
            found = [{**before, one.name: level} for before in found for level in one.levels]
    return found


def layers(space: Space) -> Sequence[str]:
    return list(dict.fromkeys(one.layer for one in space.dimensions if one.layer))


def weakest(space: Space) -> dict[str, Value]:
    """The setting that changes least: ladders at their beginning, the middle of ranges, the first choice."""
    found: dict[str, Value] = {}
    for one in space.dimensions:
        middle = math.sqrt(one.low * one.high) if one.log else (one.low + one.high) / 2
        ladder = one.levels or one.choices
        found[one.name] = ladder[0] if ladder else round(middle) if one.whole else middle
    return found
