"""How strong a pass may be set in one layer, from leaving it alone to the most that is sensible."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import onnx

from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.space import Dimension, Value, step_title
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.layers import LAYER_OPS, Weight, weights
from onnx_lathe.passes.graph.model import import_model

SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
CHANNELS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
BITS = (0, 8, 7, 6, 5, 4, 3, 2)
VALUES = (0, 64, 48, 32, 24, 16, 12, 10, 8, 7, 6, 5, 4, 3)
TRADEOFFS = (0.0, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12)
COMPENSATED_TRADEOFFS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.17, 0.22)
"""Of what layers answer: what one weight does, others make up for."""
RANKS = (0.875, 0.75, 0.625, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125)
"""Shares of the full rank; of CP's terms, of as many as save nothing."""
MACS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3)
"""Shares of the network's MACs that passes which split layers keep."""


@dataclass(frozen=True)
class Strength:
    """An option that is a table of layers. `trial`: the value, and further options, with which one run of the pass
    shows which layers it takes; `everything`: options that leave all layers alone.
    """

    option: str
    levels: Callable[[Weight], tuple[Value, ...]]
    trial: Mapping[str, Any]
    nothing: Mapping[str, Any] = field(default_factory=lambda: {"layers": {"*": 0}})
    rising: bool = True
    """Whether a larger value is stronger."""
    reshapes: bool = False
    """Whether the layers that come of it have other names."""


def _same(*levels: Value) -> Callable[[Weight], tuple[Value, ...]]:
    return lambda weight: levels


def ranks(weight: Weight) -> tuple[Value, ...]:
    """Ranks of a weight [d, c, ...] or [c, d] that save multiplications, the whole layer (0) first."""
    outputs, inputs, places = _sizes(weight)
    inputs *= places
    return _saving(min(outputs, inputs), inputs * outputs, lambda rank: rank * (inputs + outputs))


def tucker_ranks(weight: Weight) -> tuple[Value, ...]:
    """Of both channels of a weight [d, c, k, ...]: the side with fewer channels keeps all that it has at high ranks."""
    outputs, inputs, places = _sizes(weight)

    def macs(rank: int) -> int:
        first = min(rank, inputs)
        last = min(rank, outputs, first * places)
        return inputs * first + places * first * last + last * outputs

    return _saving(max(outputs, inputs), inputs * outputs * places, macs)


def cp_terms(weight: Weight) -> tuple[Value, ...]:
    """Numbers of terms of a weight [d, c, k, ...]."""
    outputs, inputs, places = _sizes(weight)
    whole, each = inputs * outputs * places, inputs + places + outputs
    return _saving(min(places * min(outputs, inputs), whole // each), whole, lambda terms: terms * each)


def _sizes(weight: Weight) -> tuple[int, int, int]:
    """Channels (of outputs, of inputs), and places of the kernel; a matrix has one."""
    shape = [int(size) for size in weight.tensor.shape]
    outputs = shape[weight.axis]
    inputs = shape[1 - weight.axis] if len(shape) > 1 else 1
    return outputs, inputs, max(1, math.prod(shape) // max(1, outputs * inputs))


def _saving(full: int, whole: int, macs: Callable[[int], int]) -> tuple[Value, ...]:
    """Shares of the full rank with fewer multiplications at each position than the layer's, which is 0 and first."""
    step = 8 if full >= 32 else 2 if full > 8 else 1
    found = (max(1, round(share * full / step) * step) for share in RANKS)
    return (0, *dict.fromkeys(rank for rank in found if macs(rank) < whole))


STRENGTHS: Mapping[str, Strength] = {
    "prune": Strength("layers", _same(*SPARSITIES), {"layers": {"*": 0.5}}),
    "prune_channels": Strength("layers", _same(*CHANNELS), {"layers": {"*": 0.5}}),
    "codebook": Strength("layers", _same(*BITS), {"layers": {"*": 3}}, rising=False),
    "svd": Strength(
        "layers",
        ranks,
        {"layers": {"*": 1}, "method": "weight"},
        {"layers": {"*": 0}},
        rising=False,
        reshapes=True,
    ),
    "tucker": Strength("layers", tucker_ranks, {"layers": {"*": 1}}, rising=False, reshapes=True),
    "int4": Strength("layers", _same(False, True), {"layers": {"*": True}}, {"layers": {"*": False}}),
    "int8": Strength(
        "layers",
        _same(False, True),
        {"layers": {"*": True}, "activations": False},
        {"layers": {"*": False}, "bias_correction": False},
    ),
}
FINER = Strength("layer_centroids", _same(*VALUES), {"layers": {"*": 3}}, rising=False)
"""Of codebook where the packed file counts: its code needs no whole number of bits."""
PRICED = Strength("layer_tradeoffs", _same(*TRADEOFFS), {"layers": {"*": 3}})
"""Beside it: the same number of values takes fewer bytes where rare ones are used less."""
COMPENSATED = replace(PRICED, levels=_same(*COMPENSATED_TRADEOFFS))


def strength_of(step: Call) -> Strength:
    """Of the option `layers` of the step; other options may say what its values count."""
    found = STRENGTHS[step.name]
    return replace(found, levels=cp_terms) if step.options.get("form") == "cp" else found


def layers_of(
    model: onnx.ModelProto, name: str, options: Mapping[str, Any], context: Context | None = None
) -> list[Weight]:
    """The weights that the pass changes when it is asked for all of them, in graph order. `context`: its data tells
    sizes that the model leaves open.
    """
    asked = {key: value for key, value in options.items() if key == "min_size"}
    instance = configure(find(name), {**asked, **STRENGTHS[name].trial})
    context = context or Context()
    if not _has_open_sizes(model):  # nothing is to be fitted to it here
        context = replace(context, calibrator=None)
    _, report = apply_pass(instance, model, context)
    changed = {edit.node for edit in report.edits}
    everywhere = name in ("prune", "codebook", "int4")
    found = weights(import_model(model), lambda node, reason: None, bodies=everywhere, everywhere=everywhere)
    return [
        weight
        for weight in found
        if changed & {node.name for node in weight.nodes}
        and (
            name != "int8"
            or any(node.op in LAYER_OPS and node.op != "ConvTranspose" for node in weight.nodes)
        )
    ]


def _has_open_sizes(model: onnx.ModelProto) -> bool:
    """Whether inputs leave more than the batch open."""
    return any(
        not dim.dim_value for value in model.graph.input for dim in value.type.tensor_type.shape.dim[1:]
    )


def per_layer(
    steps: Sequence[Call], index: int, found: Sequence[Weight], packed: bool, levels: Sequence[Value] = ()
) -> list[Dimension]:
    """A dimension for each of the weights that the step's own options do not settle. `levels`: instead of all."""
    step, title = steps[index], step_title(steps, index)
    settled = {*step.options.get("layers", {}), *step.options.get("layer_centroids", {})}
    finer = packed and step.name == "codebook" and not levels
    dimensions = []
    priced = PRICED if step.options.get("rounding", "nearest") == "nearest" else COMPENSATED
    for strength in (FINER, priced) if finer else (strength_of(step),):
        settled |= {*step.options.get(strength.option, {})}
        for weight in found:
            own = tuple(levels) or strength.levels(weight)
            if _names(weight, settled) or len(own) < 2:
                continue
            name = f"{title}.{strength.option}[{weight.name}]"
            dimensions.append(Dimension(name, index, (strength.option,), weight.name, own))
    return dimensions


def _names(weight: Weight, patterns: Collection[str]) -> bool:
    """Whether one of the patterns is about the weight or a layer of it."""
    named = {weight.name, *(node.name for node in weight.nodes)}
    return any(fnmatchcase(one, pattern) or one == pattern for one in named for pattern in patterns)


def uniform(steps: Sequence[Call], index: int) -> list[Dimension]:
    """Of a step whose layers are others in each trial: one value for all of them."""
    name, title = steps[index].name, step_title(steps, index)
    levels: Mapping[str, tuple[str, tuple[Value, ...]]] = {
        "prune": ("sparsity", SPARSITIES),
        "prune_channels": ("sparsity", CHANNELS),
        "codebook": ("bits", BITS[1:]),
        "svd": ("macs", MACS),
        "tucker": ("macs", MACS),
    }
    if name not in levels or {levels[name][0], "rank", "energy"} & steps[index].options.keys():
        return []
    option, values = levels[name]
    return [Dimension(f"{title}.{option}", index, (option,), levels=values)]


def default_space(
    steps: Sequence[Call], model: onnx.ModelProto, packed: bool, context: Context | None = None
) -> tuple[Dimension, ...]:
    """Of every step that has a strength, one dimension for each layer. `model`: as the first of them gets it."""
    found: list[Dimension] = []
    reshaped = False
    for index, step in enumerate(steps):
        if step.name not in STRENGTHS:
            continue
        if reshaped:
            found += uniform(steps, index)
        else:
            found += per_layer(steps, index, layers_of(model, step.name, step.options, context), packed)
        reshaped = reshaped or STRENGTHS[step.name].reshapes
    return tuple(found)
