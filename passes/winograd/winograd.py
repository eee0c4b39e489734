"""Chooses the algorithm of each convolution that has a choice, and writes it on the node (`lathe.conv_algorithm`).

Eligible is a Conv of 3 x 3, stride 1, dilation 1, one group, with a stored weight. The choice is between direct
convolution and minimal filtering F(2 x 2), F(4 x 4) and F(6 x 6), of which a profile says what a processor's
runtime takes by itself, and what it can be made to take. The network stays the same; a target that can follows
the choice (ncnn), others say that they do not.

by=cost    products, additions of the transforms and bytes of the weights, at the profile's speeds
by=error   the profile's own choice, where its error on calibration data is within `error`; else the fastest that
           is, in the profile's arithmetic, simulated
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
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.macs import open_shapes
from onnx_lathe.passes.graph.model import export_model, node_metadata
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.passes.winograd.layers import TAPS, Layer, eligible, pads
from onnx_lathe.passes.winograd.simulation import relative_errors
from onnx_lathe.passes.winograd.timing import Comparison, compare, fastest, tells
from onnx_lathe.passes.winograd.tuning import check_names, read_tuning

WORTH = 1.1
"""by=cost leaves the runtime's own choice only for an estimate that is so many times as fast."""
SAMPLES = 4
"""Samples of the calibration data whose errors are simulated."""
SIZES = {name: m for m, name in NAMES.items()}

Choice = tuple[int, str]
"""m, and why."""


@register
class Winograd(Pass):
    """Chooses between direct convolution and Winograd's minimal filtering, layer by layer, for a processor."""

    name = "winograd"
    lossless = True
    after = {
        name: f"the choice is for the layers that {name} leaves"
        for name in ("fold", "prune_channels", "svd", "tensor_train", "int8")
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
        choices = self._given([layer.name for layer in layers])
        free = [layer for layer in layers if layer.name not in choices]
        if self.config.by == "time" and free:
            choices |= self._timed(model, free, choices, context, report)
        elif self.config.by == "error":
            rounded = [layer for layer in free if not layer.int8 and profile.arithmetic is not None]
            errors = self._errors(model, rounded, profile, context) if rounded else {}
            choices |= self._by_error(free, errors, profile, report)
        else:
            choices |= {layer.name: self._by_cost(layer, profile) for layer in free}
        direct, left, extra = 0, 0, 0.0
        for layer in layers:
            if layer.name not in choices:
                continue
            m, why = choices[layer.name]
            direct, left = direct + layer.products(DIRECT), left + layer.products(m)
            extra += layer.weight.nbytes * numerics.memory_factor(m, TAPS) if m > DIRECT else 0
            said = node_metadata(layer.node)
            if said.get(metadata.CONV_ALGORITHM) == NAMES[m]:
                report.skip(layer.name, f"its algorithm is {NAMES[m]} already")
                continue
            said[metadata.CONV_ALGORITHM] = NAMES[m]
            report.edit(layer.name, f"{NAMES[m]}: {why}, {_gains(layer, m)}")
        if left:
            report.metrics["multiplications_saved"] = direct / left
            report.metrics["transformed_weight_bytes"] = extra
        return report

    def _given(self, names: list[str]) -> dict[str, Choice]:
        """What the options say, or the file of a device. Raises UsageError for a layer that has no choice."""
        if unknown := set(self.config.layers) - set(names):
            raise UsageError(f"winograd(layers=...): no eligible layer is named '{min(unknown)}'")
        given: dict[str, Choice] = {}
        if self.config.tuning is not None:
            tuning = read_tuning(Path(self.config.tuning))
            check_names(self.config.tuning, tuning, names)
            given = {name: (SIZES[word], f"as {tuning.device} chose") for name, word in tuning.layers.items()}
        return given | {
            name: (SIZES[word], "as the options say") for name, word in self.config.layers.items()
        }

    def _by_cost(self, layer: Layer, profile: Profile) -> Choice:
        able = layer.able(profile)
        default = able[0]
        if profile.arithmetic is None or layer.int8:
            return default, "the runtime's own: what integers cost is not estimated"
        costs = {m: _nanoseconds(layer, m, profile) for m in able}
        fastest = min(able, key=lambda m: (costs[m], m != default))
        over = costs[default] / costs[fastest]
        if over < WORTH or fastest == default:
            return default, "the runtime's own"
        return fastest, f"an estimated {over:.2f}x the speed of {NAMES[default]}, the runtime's own"

    def _by_error(
        self,
        layers: list[Layer],
        errors: Mapping[str, Mapping[int, float]],
        profile: Profile,
        report: PassReport,
    ) -> dict[str, Choice]:
        found: dict[str, Choice] = {}
        for layer in layers:
            if layer.int8 or profile.arithmetic is None:
                found[layer.name] = layer.able(profile)[0], "the runtime's own: sums of integers are exact"
            elif not errors[layer.name]:
                report.skip(
                    layer.name, "what it computes of the calibration data is zero: its error cannot be told"
                )
            else:
                found[layer.name] = self._least_error(layer, errors[layer.name], profile)
        return found

    def _least_error(self, layer: Layer, errors: Mapping[int, float], profile: Profile) -> Choice:
        able = layer.able(profile)
        costs = {m: _nanoseconds(layer, m, profile) for m in able}
        within = [m for m in able if errors[m] <= self.config.error]
        least = min(able, key=lambda m: (errors[m], costs[m]))
        m = able[0] if able[0] in within else min(within, key=lambda m: costs[m], default=least)
        shown = ", ".join(f"{NAMES[one]} {errors[one]:.1e}" for one in able)
        beyond = "" if m in within else f", all beyond {self.config.error:g}"
        return m, f"errors {shown}{beyond}"

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
        able = {layer.name: layer.able(PROFILES[name]) for layer in layers}
        own = {layer: NAMES[m] for layer, (m, _) in given.items()} | {
            layer: NAMES[sizes[0]] for layer, sizes in able.items()
        }
        variants = [own, own, *_variants(own, able)]
        times = timer.layers(model, name, variants) if len(variants) > 2 else {}
        compared = fastest({layer: times[layer] for layer in able if layer in times}, variants)
        chosen = {layer: word for layer, one in compared.items() if (word := tells(one)) is not None}
        whole = ""
        if chosen:
            comparison = compare(timer.whole(model, name, [own, own, own | chosen]), 2)
            report.metrics["network_time_ratio"] = comparison.ratio
            if not comparison.gains:
                whole = f", but as a whole the network gains nothing by such choices: {comparison.text()}"
        found: dict[str, Choice] = {}
        for layer, sizes in able.items():
            word = chosen.get(layer)
            if layer not in compared and len(sizes) > 1:
                report.skip(layer, "ncnn has no layer of it that could be timed")
            elif word is not None and not whole:
                found[layer] = (
                    SIZES[word],
                    f"timed {compared[layer][word].text()} of {own[layer]}, ncnn's own",
                )
            else:
                found[layer] = (
                    sizes[0],
                    f"ncnn's own{_timed_text(compared.get(layer, {}))}{whole if word else ''}",
                )
        return found

    def _errors(
        self,
        model: onnx.ModelProto,
        layers: list[Layer],
        profile: Profile,
        context: Context,
    ) -> dict[str, dict[int, float]]:
        """The largest errors on the first samples, by layer and m."""
        arithmetic = np.dtype(profile.arithmetic or "float32").type
        found: dict[str, dict[int, float]] = {layer.name: {} for layer in layers}
        seen = 0
        names = list(dict.fromkeys(layer.node.inputs[0].name for layer in layers))
        for observed in context.need_calibrator().observe(model, names):
            for layer in layers:
                context.progress(f"simulating {layer.name}")
                able = layer.able(profile)
                for image in observed[layer.node.inputs[0].name][: SAMPLES - seen]:
                    padded = np.pad(image, ((0, 0), *pads(layer.node, image.shape[1:])))
                    errors = relative_errors(padded, layer.weight, able, arithmetic)
                    known = found[layer.name]
                    known |= {m: max(error, known.get(m, 0.0)) for m, error in errors.items()}
            seen += observed.samples
            if seen >= SAMPLES:
                break
        return found


def _variants(own: Mapping[str, str], able: Mapping[str, Sequence[int]]) -> Iterator[dict[str, str]]:
    """For the second and third of what layers can take, the network in which all that can take it."""
    for place in range(1, max(map(len, able.values()))):
        yield {**own, **{layer: NAMES[sizes[place]] for layer, sizes in able.items() if len(sizes) > place}}


def _timed_text(compared: Mapping[str, Comparison]) -> str:
    return "".join(f"; {word} takes {one.text()}" for word, one in compared.items())


def _nanoseconds(layer: Layer, m: int, profile: Profile) -> float:
    """Products, additions of the transforms of data and results, and weights read once."""
    outputs, inputs = layer.weight.shape[:2]
    factor = numerics.memory_factor(m, TAPS) if m > DIRECT else 1.0
    weights = layer.weight.nbytes * factor / profile.weight_bytes
    if m == DIRECT:
        return layer.products(m) / profile.products + weights
    output, _, data = numerics.cook_toom(m, TAPS).arrays()
    size = m + TAPS - 1
    of_data = 2 * size * int(np.count_nonzero(data))
    of_result = (m + size) * int(np.count_nonzero(output))
    transforms = layer.tiles(m) * (inputs * of_data + outputs * of_result)
    return layer.products(m) / profile.products + transforms / profile.additions + weights


def _gains(layer: Layer, m: int) -> str:
    if m == DIRECT:
        return "no multiplications saved"
    times = numerics.multiplications_saved(m, TAPS)
    transform, plain = numerics.cook_toom(m, TAPS), numerics.cook_toom(DIRECT, TAPS)
    coarser = numerics.amplification(transform) / numerics.amplification(plain)
    return (
        f"{times:.3g}x fewer multiplications ({layer.products(DIRECT) / layer.products(m):.3g}x with what tiles leave "
        f"over), weights take {numerics.memory_factor(m, TAPS):.3g}x the memory, the bound of the error is {coarser:.3g}x"
    )
