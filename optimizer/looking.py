"""What `optimize init` goes by: what a model and its data are, found without compressing or timing anything.

Which layers INT8 would take is what the pass says before it calibrates; which metrics there are is found on a few
samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnx_lathe.optimizer.build import configured_targets, placement
from onnx_lathe.optimizer.inspect import Size, layer_table
from onnx_lathe.optimizer.opening import open_file
from onnx_lathe.optimizer.recipe import Call, Recipe
from onnx_lathe.optimizer.services import Roles, open_roles
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import Skip
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph.layers import weights
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.graph.quantization.placement import is_depthwise
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.placement import Placement
from onnx_lathe.runtime.data import take
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference

TRIED = 8
"""Samples on which it is found out what can be measured."""
QUANTIZED = ("already", "integers", "quantized")
"""Words of a refusal that says the layer is in few bits as it is."""


@dataclass(frozen=True)
class Layers:
    """What int8 makes of the layers: names of those it quantizes, and node and reason of those it leaves in float."""

    taken: Sequence[str]
    left: Sequence[Skip]
    stored: int = 0
    """How many weights it could at least store in 8 bits."""
    depthwise: int = 0
    """How many layers are depthwise convolutions."""
    spatial: int = 0
    """How many are dense convolutions of a kernel larger than 1 x 1."""

    @property
    def is_quantized(self) -> bool:
        """Whether the model comes quantized."""
        return not self.taken and any(word in skip.reason for skip in self.left for word in QUANTIZED)


@dataclass(frozen=True)
class Facts:
    """What was found out about a model and its data."""

    model: Path
    ports: Sequence[str]
    """ "input image float32 [batch, 3, 32, 32]", the outputs behind the inputs."""
    size: Size
    layers: Layers
    roles: Roles
    metrics: frozenset[str]
    """What can be measured on the evaluation data, by name."""
    targets: Sequence[Call]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Target -> why it does not build on this machine."""
    runs_integers: bool = True
    """Whether one of the targets runs a model, and not only writes it."""


def look(path: Path, recipe: Recipe, targets: Sequence[Call] | None) -> Facts:
    """What there is to know of the model in `path` and the recipe's data. Without targets: ort if there is data that
    calibrates, else onnx.
    """
    model = open_file(path).model
    roles = open_roles(recipe, model)
    if targets is None:
        targets = [Call("onnx" if roles.calibration is None else "ort", {})]
    opened = configured_targets(targets)
    for target, options in opened:
        target.accepts(model, options)
    reasons = {target.name: target.available() for target, _ in opened}
    folded, _ = apply_pass(configure(find("fold"), {}), model, Context())
    return Facts(
        path,
        _ports(model),
        layer_table(model).size,
        _layers(folded, placement(opened)),
        roles,
        frozenset(_metrics(model, roles)),
        targets,
        {name: reason for name, reason in reasons.items() if reason is not None},
        any(target.placement is not None for target, _ in opened),
    )


def _ports(model: onnx.ModelProto) -> list[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [("input", value) for value in model.graph.input if value.name not in stored]
    return [
        f"{what} {value.name} {onnx.helper.printable_type(value.type)}"
        for what, value in [*inputs, *(("output", value) for value in model.graph.output)]
    ]


def _layers(model: onnx.ModelProto, place: Placement) -> Layers:
    graph = import_model(model)
    lift(graph)
    taken, left = Int8().choose(graph, Context(placement=place))
    stored, _ = Int8(Int8.Config(activations=False)).choose(graph, Context(placement=place))
    layers = [
        (node, weight.tensor.shape or (0, 0))
        for weight in weights(graph, refuse=lambda node, reason: None)
        for node in weight.nodes
    ]
    depthwise = [node for node, shape in layers if is_depthwise(node, shape)]
    spatial = [
        node
        for node, shape in layers
        if node.op == "Conv" and node.attrs.get("group", 1) == 1 and math.prod(shape[2:]) > 1
    ]
    names = [node.name for weight in taken for node in weight.nodes]
    return Layers(names, left, len(stored), len(depthwise), len(spatial))


def _metrics(model: onnx.ModelProto, roles: Roles) -> list[str]:
    """Names of what can be measured. Runs the model on the first samples, which have to fit it."""
    if roles.sample is None:
        return []
    few = take(roles.sample, TRIED)
    session = ort.session(model)
    known = reference(session, few, lambda text: None, model)
    found = evaluate(session, few, known, lambda text: None)
    return [] if roles.evaluation is None else [name for name in found if "[" not in name]
