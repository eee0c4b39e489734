"""Chooses the algorithm of each convolution that has a choice, and writes it on the node (`lathe.conv_algorithm`).

Eligible is a Conv of 3 x 3, stride 1, dilation 1, one group, with a stored weight. The choice is between direct
convolution and minimal filtering F(2 x 2), F(4 x 4) and F(6 x 6), of which a profile says what a processor's
runtime takes by itself, and what it can be made to take. The network stays the same; a target that can follows
the choice (ncnn), others say that they do not.

by=cost    products, additions of the transforms and bytes of the weights, at the profile's speeds; for a processor
           whose times were not measured, the runtime's own choice unless arithmetic alone makes it twice as slow
by=error   the profile's own choice, where its error on calibration data is within `error`; else the fastest that
           is, as ncnn's kernels compute it in the profile's arithmetic, simulated. Where that is float16, a layer
           may be told to sum in float32 (`lathe.conv_precision`), by direct convolution
by=time    measured in ncnn on this machine, layer by layer and then as a whole (timing.py)

`layers` and a file that a device wrote (tuning.py) come before all of them.
Sources: passes/numerics/winograd.py; Lavin and Gray, CVPR 2016, section 4 and table 1, for what transforms cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from onnx_lathe.passes.graph.macs import open_shapes
from onnx_lathe.passes.graph.model import export_model, node_metadata
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.passes.numerics.tile_arithmetic import matrices
from onnx_lathe.passes.winograd.layers import Layer, eligible, pads
from onnx_lathe.passes.winograd.simulation import relative_errors
from onnx_lathe.passes.winograd.timing import Comparison, compare, fastest, tells
from onnx_lathe.passes.winograd.tuning import check_names, read_tuning
from onnx_lathe.passes.winograd.ways import Way, ways_of
from onnx_lathe.tiles import NCNN, TAPS

SAMPLES = 4
"""Samples of the calibration data whose errors are simulated."""
SIZES = {name: m for m, name in NAMES.items()}

Choice = tuple[Way, str]
"""How, and why."""


@register
class Winograd(Pass):
    """Chooses between direct convolution and Winograd's minimal filtering, layer by layer, for a processor."""

    name = "winograd"
    lossless = True
    after = {
        name: f"the choice is for the layers that {name} leaves"
        for name in ("fold", "prune_channels", "svd", "tensor_train", "tucker", "int8")
    }

    @dataclass(frozen=True)
    class Config:
        by: str = option(
            "cost",
            "what decides: an estimate of time, the error on calibration data, or times measured here in ncnn",
            choices=("cost", "error", "time"),
        )
        profile: str = option("x86", "the processor and its arithmetic", choices=tuple(PROFILES))
        error: float = option(
            0.01, "by=error: largest error of a layer, relative to its largest result", low=0.0, high=1.0
        )
        layers: dict[str, str] = option(
            {}, "layer names with their algorithm: direct, winograd23, winograd43 or winograd63"
        )
        tuning: str | None = option(
            None, "file of choices made on a device; `by` decides for layers that it does not name", file=True
        )

        def __post_init__(self) -> None:
            for layer, algorithm in self.layers.items():
                if algorithm not in NAMES.values():
                    raise UsageError(
                        f"winograd: layers={{'{layer}': ...}} takes {', '.join(NAMES.values())}, not '{algorithm}'"
                    )
            if self.tuning is not None:
                read_tuning(Path(self.tuning))

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        needs = {"error": ("calibrator",), "time": ("kernel_timer",)}
        self.needs = needs.get(self.config.by, ())

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report, profile = PassReport(), PROFILES[self.config.profile]
        model = export_model(graph)
        layers = list(eligible(graph, open_shapes(model, {}), report))
        choices = self._given([layer.name for layer in layers], profile)
        free = [layer for layer in layers if layer.name not in choices]
        if self.config.by == "time" and free:
            choices |= self._timed(model, free, choices, context, report)
        elif self.config.by == "error":
            rounded = [layer for layer in free if not layer.int8]
            errors = self._errors(model, rounded, profile, context) if rounded else {}
            choices |= self._by_error(free, errors, profile, report)
        else:
            choices |= {layer.name: _by_cost(layer, profile) for layer in free}
        direct, left, extra = 0, 0, 0.0
        for layer in layers:
            if layer.name not in choices:
                continue
            way, why = choices[layer.name]
            direct, left = direct + layer.products(DIRECT), left + layer.products(way.m)
            extra += way.weight_bytes(layer)
            if _write(layer.node, way):
                report.edit(layer.name, f"{way.name}: {why}, {_gains(layer, way.m)}")
            else:
                report.skip(layer.name, f"its algorithm is {way.name} already")
        if left:
            report.metrics["multiplications_saved"] = direct / left
            report.metrics["transformed_weight_bytes"] = extra
        return report

    def _given(self, names: list[str], profile: Profile) -> dict[str, Choice]:
        """What the options say, or the file of a device. Raises UsageError for a layer that has no choice."""
        if unknown := set(self.config.layers) - set(names):
            raise UsageError(f"winograd(layers=...): no eligible layer is named '{min(unknown)}'")
        given: dict[str, Choice] = {}
        if self.config.tuning is not None:
            tuning = read_tuning(Path(self.config.tuning))
            check_names(self.config.tuning, tuning, names)
            given = {
                name: (Way(SIZES[word], profile), f"as {tuning.device} chose")
                for name, word in tuning.layers.items()
            }
        return given | {
            name: (Way(SIZES[word], profile), "as the options say")
            for name, word in self.config.layers.items()
        }

    def _by_error(
        self,
        layers: list[Layer],
        errors: Mapping[str, Mapping[Way, float]],
        profile: Profile,
        report: PassReport,
    ) -> dict[str, Choice]:
        found: dict[str, Choice] = {}
        for layer in layers:
            if layer.int8:
                own = ways_of(layer, profile)[0]
                found[layer.name] = own, "the runtime's own: sums of integers are exact"
            elif not errors[layer.name]:
                report.skip(
                    layer.name, "what it computes of the calibration data is zero: its error cannot be told"
                )
            else:
                found[layer.name] = self._least_error(layer, errors[layer.name], profile)
        return found

    def _least_error(self, layer: Layer, errors: Mapping[Way, float], profile: Profile) -> Choice:
        default = ways_of(layer, profile)[0]
        within = [way for way, error in errors.items() if error <= self.config.error]
        least = min(errors, key=lambda way: (errors[way], way.cost(layer)))
        way = default if default in within else min(within, key=lambda way: way.cost(layer), default=least)
        shown = ", ".join(f"{one.name} {error:.1e}" for one, error in errors.items())
        beyond = "" if way in within else f", all beyond {self.config.error:g}"
        return way, f"errors {shown}{beyond}"

    def _timed(
        self,
        model: onnx.ModelProto,
        layers: list[Layer],
        given: Mapping[str, Choice],
        context: Context,
        report: PassReport,
    ) -> dict[str, Choice]:
        """By times of layers, and of the whole network with what they say."""
        name, timer = self.config.profile, context.need_kernel_timer()
        profile = PROFILES[name]
        able = {layer.name: layer.able(profile) for layer in layers}
        own = {layer: NAMES[way.m] for layer, (way, _) in given.items()} | {
            layer: NAMES[sizes[0]] for layer, sizes in able.items()
        }
        variants = [own, own, *_variants(own, able)]
        times = timer.layers(model, name, variants) if len(variants) > 2 else {}
        compared = fastest({layer: times[layer] for layer in able if layer in times}, variants)
        chosen = {layer: word for layer, one in compared.items() if (word := tells(one)) is not None}
        whole = ""
        if chosen:
            comparison = compare(timer.whole(model, name, [own, own, own | chosen]), 2)
            if comparison.gains:
                report.metrics["network_time_ratio"] = comparison.ratio
            else:
                whole = f", but as a whole the network gains nothing by such choices: {comparison.text()}"
        found: dict[str, Choice] = {}
        for layer, sizes in able.items():
            word = chosen.get(layer)
            if layer not in compared and len(sizes) > 1:
                report.skip(layer, "ncnn has no layer of it that could be timed")
            elif word is not None and not whole:
                found[layer] = (
                    Way(SIZES[word], profile),
                    f"timed {compared[layer][word].text()} of {own[layer]}, ncnn's own",
                )
            else:
                found[layer] = (
                    Way(sizes[0], profile),
                    f"ncnn's own{_timed_text(compared.get(layer, {}))}{whole if word else ''}",
                )
        return found

    def _errors(
        self, model: onnx.ModelProto, layers: list[Layer], profile: Profile, context: Context
    ) -> dict[str, dict[Way, float]]:
        """The largest errors on the first samples, by layer and way, the runtime's own first."""
        found: dict[str, dict[Way, float]] = {layer.name: {} for layer in layers}
        stored = np.dtype(profile.arithmetic).type
        seen = 0
        names = list(dict.fromkeys(layer.node.inputs[0].name for layer in layers))
        for observed in context.need_calibrator().observe(model, names):
            for layer in layers:
                context.progress(f"simulating {layer.name}")
                known = found[layer.name]
                for image in observed[layer.node.inputs[0].name][: SAMPLES - seen]:
                    padded = np.pad(image, ((0, 0), *pads(layer.node, image.shape[1:])))
                    errors = relative_errors(padded, layer.weight, ways_of(layer, profile, told=True), stored)
                    known |= {way: max(error, known.get(way, 0.0)) for way, error in errors.items()}
            seen += observed.samples
            if seen >= SAMPLES:
                break
        return found


def _by_cost(layer: Layer, profile: Profile) -> Choice:
    default, *others = ways_of(layer, profile)
    if layer.int8:
        return default, "the runtime's own: sums of integers are exact, and what they cost is not estimated"
    fastest = min((default, *others), key=lambda way: way.cost(layer))
    over = default.cost(layer) / fastest.cost(layer)
    if over < profile.worth:
        return default, "the runtime's own"
    estimate = "an estimated" if profile.speeds else "by arithmetic alone"
    return fastest, f"{estimate} {over:.2f}x the speed of {default.name}, the runtime's own"


def _write(node: Node, way: Way) -> bool:
    """Returns whether the node said something else before."""
    said = node_metadata(node)
    before = said.get(metadata.CONV_ALGORITHM), said.get(metadata.CONV_PRECISION)
    said[metadata.CONV_ALGORITHM] = NAMES[way.m]
    if way.sums is None:
        said.pop(metadata.CONV_PRECISION, None)
    else:
        said[metadata.CONV_PRECISION] = way.sums
    return before != (NAMES[way.m], way.sums)


def _variants(own: Mapping[str, str], able: Mapping[str, Sequence[int]]) -> Iterator[dict[str, str]]:
    """For the second and third of what layers can take, the network in which all that can take it."""
    for place in range(1, max(map(len, able.values()))):
        yield {**own, **{layer: NAMES[sizes[place]] for layer, sizes in able.items() if len(sizes) > place}}


def _timed_text(compared: Mapping[str, Comparison]) -> str:
    return "".join(f"; {word} takes {one.text()}" for word, one in compared.items())


def _gains(layer: Layer, m: int) -> str:
    if m == DIRECT:
        return "no multiplications saved"
    times = numerics.multiplications_saved(m, TAPS)
    fewer = f"{times:.3g}x fewer multiplications ({layer.products(DIRECT) / layer.products(m):.3g}x with what tiles leave over)"
    factor = numerics.memory_factor(m, TAPS)
    if layer.int8:
        return f"{fewer}, weights in 16 bits take {2 * factor:.3g}x the memory, sums are exact"
    plain = numerics.cook_toom(DIRECT, TAPS).arrays()
    coarser = numerics.amplification(matrices(NCNN[m])) / numerics.amplification(plain)
    return f"{fewer}, weights take {factor:.3g}x the memory, the bound of the error is {coarser:.3g}x"
