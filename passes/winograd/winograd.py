"""Chooses the algorithm of each convolution that has a choice, and writes it on the node (`lathe.conv_algorithm`).

Eligible is a Conv of 3 x 3, stride 1, dilation 1, one group, with a stored weight. The choice is between direct
convolution and minimal filtering F(2 x 2), F(4 x 4) and F(6 x 6), of which a profile says what a processor's
runtime takes by itself, and what it can be made to take. The network stays the same; a target that can follows
the choice, others ignore it.

by=cost    products, additions of the transforms and bytes of the weights, at the profile's speeds; for a processor
           whose times were not measured, the runtime's own choice unless arithmetic alone makes it twice as slow
by=error   the profile's own choice, where its error on calibration data is within `error`; else the fastest that
           is, as ncnn's kernels compute it in the profile's arithmetic, simulated. Where that is float16, a layer
           may be told to compute in float32 (`lathe.conv_precision`), by Winograd again
Sources: passes/numerics/winograd.py; Lavin and Gray, CVPR 2016, section 4 and table 1, for what transforms cost.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.kernels import DIRECT, NAMES, PROFILES, Profile
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant
from onnx_lathe.passes.graph.macs import OpenShape, open_shapes
from onnx_lathe.passes.graph.model import export_model, node_metadata
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.passes.numerics.tile_arithmetic import matrices
from onnx_lathe.passes.winograd.simulation import relative_errors
from onnx_lathe.passes.winograd.ways import Layer, Way, ways_of
from onnx_lathe.tiles import NCNN, TAPS

SAMPLES = 4
"""Samples of the calibration data whose errors are simulated."""


Errors = Mapping[Way, float]


@register
class Winograd(Pass):
    """Chooses between direct convolution and Winograd's minimal filtering, layer by layer, for a processor."""

    name = "winograd"
    lossless = True
    after = {
        name: f"the choice is for the layers that {name} leaves"
        for name in ("fold", "prune_channels", "svd", "tensor_train")
    }

    @dataclass(frozen=True)
    class Config:
        by: str = option(
            "cost",
            "what decides: an estimate of time, or the error on calibration data",
            choices=("cost", "error"),
        )
        profile: str = option("x86", "the processor and its arithmetic", choices=tuple(PROFILES))
        error: float = option(
            0.01, "by=error: largest error of a layer, relative to its largest result", low=0.0, high=1.0
        )
        layers: dict[str, str] = option(
            {}, "layer names with their algorithm: direct, winograd23, winograd43 or winograd63"
        )

        def __post_init__(self) -> None:
            for layer, algorithm in self.layers.items():
                if algorithm not in NAMES.values():
                    raise UsageError(
                        f"winograd: layers={{'{layer}': ...}} takes {', '.join(NAMES.values())}, not '{algorithm}'"
                    )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.needs = ("calibrator",) if self.config.by == "error" else ()

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report, profile = PassReport(), PROFILES[self.config.profile]
        model = export_model(graph)
        layers = list(_eligible(graph, open_shapes(model, {}), report))
        if unknown := set(self.config.layers) - {layer.node.name for layer in layers}:
            raise UsageError(f"winograd(layers=...): no eligible layer is named '{min(unknown)}'")
        errors = None
        if self.config.by == "error" and profile.arithmetic is not None and layers:
            errors = self._errors(model, layers, profile, context)
        direct, left, extra = 0, 0, 0.0
        for layer in layers:
            if errors is not None and not errors[layer.node.name]:
                report.skip(
                    layer.node.name,
                    "what it computes of the calibration data is zero: its error cannot be told",
                )
                continue
            way, why = self._choice(layer, profile, {} if errors is None else errors[layer.node.name])
            direct, left = direct + layer.products(DIRECT), left + layer.products(way.m)
            extra += way.weight_bytes(layer)
            if _write(layer.node, way):
                report.edit(layer.node.name, f"{way.name}: {why}")
            else:
                report.skip(layer.node.name, f"its algorithm is {way.name} already")
        if left:
            report.metrics["multiplications_saved"] = direct / left
            report.metrics["transformed_weight_bytes"] = extra
        return report

    def _choice(self, layer: Layer, profile: Profile, errors: Errors) -> tuple[Way, str]:
        """(how, why)."""
        wanted = self.config.layers.get(layer.node.name)
        if wanted is not None:
            m = next(m for m, name in NAMES.items() if name == wanted)
            return Way(m, profile), f"as the options say, {_gains(layer, m)}"
        if self.config.by == "cost":
            return _by_cost(layer, profile)
        default = ways_of(layer, profile)[0]
        if profile.arithmetic is None:
            return default, f"sums of integers are exact, {_gains(layer, default.m)}"
        within = [way for way, error in errors.items() if error <= self.config.error]
        least = min(errors, key=lambda way: (errors[way], way.cost(layer)))
        way = default if default in within else min(within, key=lambda way: way.cost(layer), default=least)
        shown = ", ".join(f"{one.name} {error:.1e}" for one, error in errors.items())
        beyond = "" if way in within else f", all beyond {self.config.error:g}"
        return way, f"errors {shown}{beyond}, {_gains(layer, way.m)}"

    def _errors(
        self, model: onnx.ModelProto, layers: list[Layer], profile: Profile, context: Context
    ) -> dict[str, dict[Way, float]]:
        """The largest errors on the first samples, by layer and way, the runtime's own first."""
        found: dict[str, dict[Way, float]] = {layer.node.name: {} for layer in layers}
        stored = np.dtype(profile.arithmetic).type
        seen = 0
        names = list(dict.fromkeys(layer.node.inputs[0].name for layer in layers))
        for observed in context.need_calibrator().observe(model, names):
            for layer in layers:
                context.progress(f"simulating {layer.node.name}")
                known = found[layer.node.name]
                for image in observed[layer.node.inputs[0].name][: SAMPLES - seen]:
                    padded = np.pad(image, ((0, 0), *_pads(layer.node, image.shape[1:])))
                    errors = relative_errors(padded, layer.weight, ways_of(layer, profile, told=True), stored)
                    known |= {way: max(error, known.get(way, 0.0)) for way, error in errors.items()}
            seen += observed.samples
            if seen >= SAMPLES:
                break
        return found


def _by_cost(layer: Layer, profile: Profile) -> tuple[Way, str]:
    default, *others = ways_of(layer, profile)
    fastest = min((default, *others), key=lambda way: way.cost(layer))
    over = default.cost(layer) / fastest.cost(layer)
    if over < profile.worth:
        return default, f"the runtime's own, {_gains(layer, default.m)}"
    estimate = "an estimated" if profile.speeds else "by arithmetic alone"
    return (
        fastest,
        f"{estimate} {over:.2f}x the speed of {default.name}, the runtime's own, {_gains(layer, fastest.m)}",
    )


def _write(node: Node, way: Way) -> bool:
    """Returns whether the node said something else before."""
    said = node_metadata(node)
    before = said.get(metadata.CONV_ALGORITHM), said.get(metadata.CONV_PRECISION)
    said[metadata.CONV_ALGORITHM] = NAMES[way.m]
    if way.precision is None:
        said.pop(metadata.CONV_PRECISION, None)
    else:
        said[metadata.CONV_PRECISION] = way.precision
    return before != (NAMES[way.m], way.precision)


def _eligible(graph: Graph, shapes: Mapping[str, OpenShape], report: PassReport) -> Iterator[Layer]:
    for node in graph.nodes:
        if node.op != "Conv" or node.domain:
            continue
        weight = node.inputs[WEIGHT_INPUT]
        shape = shapes.get(node.outputs[0].name, ())
        if not is_constant(weight):
            report.skip(node.name, "its weight is computed at run time")
        elif reason := _not_eligible(node, constant_value(weight, graph.opset).shape):
            report.skip(node.name, reason)
        elif len(shape) != 4 or not all(isinstance(size, int) for size in shape[2:]):
            report.skip(node.name, "the size of its result is not known before the model runs")
        else:
            values = constant_value(weight, graph.opset).astype(np.float32)
            yield Layer(
                node, values, shape[0] if isinstance(shape[0], int) else 1, int(shape[2]), int(shape[3])
            )


def _not_eligible(node: Node, shape: tuple[int, ...]) -> str | None:
    if shape[2:] != (TAPS, TAPS):
        return f"its kernel is {' x '.join(map(str, shape[2:]))}, not 3 x 3"
    for name in ("strides", "dilations"):
        if any(step != 1 for step in node.attrs.get(name, (1,))):
            return f"its {name} are {list(node.attrs[name])}"
    return "it has groups" if node.attrs.get("group", 1) != 1 else None


def _pads(node: Node, size: tuple[int, ...]) -> list[tuple[int, int]]:
    if node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [(1, 1)] * len(size)
    pads = node.attrs.get("pads", [0] * 4) if node.attrs.get("auto_pad") != "VALID" else [0] * 4
    return [(pads[0], pads[2]), (pads[1], pads[3])]


def _gains(layer: Layer, m: int) -> str:
    if m == DIRECT:
        return "no multiplications saved"
    times = numerics.multiplications_saved(m, TAPS)
    plain = numerics.cook_toom(DIRECT, TAPS).arrays()
    coarser = numerics.amplification(matrices(NCNN[m])) / numerics.amplification(plain)
    return (
        f"{times:.3g}x fewer multiplications ({layer.products(DIRECT) / layer.products(m):.3g}x with what tiles leave "
        f"over), weights take {numerics.memory_factor(m, TAPS):.3g}x the memory, the bound of the error is {coarser:.3g}x"
    )
