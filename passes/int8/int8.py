"""Post-training INT8: weights per output channel, activations per tensor, symmetric, from calibrated ranges.

    x -> Conv(W)   becomes   x -> QuantizeLinear -> DequantizeLinear -> Conv(DequantizeLinear(W_int8))

Conv, Gemm and MatMul with a constant weight. Depthwise and transposed convolutions stay float: INT8 makes
them slower on TensorRT, or is not there; the option layers can ask for a depthwise one. With
activations=false the weights of transposed convolutions, recurrent layers and embeddings are stored in INT8,
too; the option layers can ask for the latter two at any time. Bias stays float. A residual Add behind a quantized convolution reads its other operand quantized, so that TensorRT joins the
two. The form is in passes/graph/quantization/pairs.py.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018; Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
Empirical Evaluation", 2020, sections 3 and 5.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport, Skip
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, rewire
from onnx_lathe.passes.graph.answers.rounding import HESSIAN
from onnx_lathe.passes.graph.layers import (
    Weight,
    codebook_of,
    constant_shape,
    constant_value,
    is_constant,
    is_stored_only,
    other_use,
    output_axis,
    weights,
)
from onnx_lathe.passes.graph.model import export_model, node_metadata
from onnx_lathe.passes.graph.opset import raise_opset
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.graph.quantization import decoded_products, pairs
from onnx_lathe.passes.graph.quantization.bias_range import fit_biases
from onnx_lathe.passes.graph.quantization.placement import Rows, float_reason, split_gates
from onnx_lathe.passes.graph.quantization.propagation import keep_loadable
from onnx_lathe.passes.graph.quantization.simulation import as_computed
from onnx_lathe.passes.int8.bias import OUTPUTS
from onnx_lathe.passes.int8.blocks import fit_blocks
from onnx_lathe.passes.int8.cache import read_cache, tell_of_cache, unmatched_names
from onnx_lathe.passes.int8.compensation import compensate_rounding
from onnx_lathe.passes.int8.existing import CHOICES, treat_existing
from onnx_lathe.passes.int8.filled import filled_weights, warning
from onnx_lathe.passes.int8.foreign_pairs import is_blocked
from onnx_lathe.passes.int8.quantization import Quantization, is_weight_only, layers_of, skip
from onnx_lathe.passes.int8.ranges import METHODS
from onnx_lathe.passes.int8.rounding import adapt_rounding
from onnx_lathe.passes.int8.sensitivity import Goal, Sensitivity
from onnx_lathe.passes.int8.widths import (
    largest_levels,
    refuse_weight_widths,
    refuse_widths,
    wide_weights,
)
from onnx_lathe.placement import Placement

WEIGHT_ONLY = "its weight is quantized already; existing=complete quantizes what it reads, too"
IN_BLOCKS = "its weight is quantized in blocks, which runtimes do not multiply with INT8 activations"
IN_BODY = "its weight is read in the {}, where activations are not calibrated; int8(activations=false) stores such weights in 8 bits"
INPUT_ONLY = "what it reads is quantized already; existing=complete quantizes its weight, too"
WEIGHT_ALONE: Mapping[str, str] = {
    "ConvTranspose": "a transposed convolution stays float",
    "Gather": "an embedding stays float",
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "a recurrent layer stays float"),
}
"""Operator -> what is said where activations are quantized, and the option layers does not ask for its weight."""

LEAST_SQNR = 12.0
"""In dB: below, an error of the outputs is a quarter of their size and more."""
COLLAPSED = "INT8 leaves the outputs at {:.1f} dB signal to noise on calibration data; min_sqnr=20 finds the fewest layers to leave in float"

UNCORRECTED = "ranges= needs no data, but bias correction does: biases stay as they are; --calibration corrects them too"


@register
class Int8(Pass):
    """Quantizes weights and activations to 8 bits after training, with ranges from calibration data."""

    name = "int8"
    streams = True
    needs: tuple[str, ...] = ("calibrator",)
    after = {"fold": "batch normalization must be part of the weights before their range is measured"}

    @dataclass(frozen=True)
    class Config:
        activations: bool = option(
            True, "quantize activations too; false makes the file small, not fast, and needs no data"
        )
        activation_bits: int = option(
            8, "of activations: 8, or 16 for layers that 8 do not carry; weights have 8", unit="bits"
        )
        layer_bits: dict[str, int] = option(
            {}, "activation_bits of single layers, 8 or 16, by pattern", unit="bits"
        )
        weight_bits: int = option(
            8, "of weights, 2 to 8: fewer levels, in INT8, which every target multiplies", unit="bits"
        )
        layer_weight_bits: dict[str, int] = option(
            {}, "weight_bits of single layers, by pattern", unit="bits"
        )
        method: str = option("percentile", "how a range follows from the calibration data", choices=METHODS)
        percentile: float = option(
            99.999,
            "share of the values inside the range, with method=percentile",
            unit="percent",
            low=50,
            high=100,
        )
        ranges: str | None = option(
            None, "calibration cache of TensorRT, whose scales take the place of calibration data", file=True
        )
        weights: str = option(
            "max",
            "scale of a channel: from its largest weight, or by least squared error, as always below 8 bits",
            choices=("max", "mse"),
        )
        rounding: str = option(
            "nearest",
            "of weights; adaptive: so that each layer goes on answering alike; hessian: so too, in one sweep; blocks: each block, trained (PyTorch)",
            choices=("nearest", "adaptive", HESSIAN, "blocks"),
        )
        rounding_steps: int = option(
            20, "rounds over all inputs of a layer, at most, with rounding=adaptive or blocks", low=1
        )
        block_steps: int = option(50, "of the optimizer, per block, with rounding=blocks", low=1)
        bias_correction: bool = option(
            True,
            "let each layer's output keep its mean on the calibration data, where that helps the outputs",
        )
        layers: dict[str, bool] = option(
            {}, "quantize (true) or leave in float (false) single layers, by pattern"
        )
        existing: str = option(
            "keep",
            "Q/DQ that the model has: left as it is; brought to INT8 with zero-point 0 and added to; taken out",
            choices=CHOICES,
        )
        sensitivity: bool = option(
            False, "measure what each layer in INT8 alone does to the outputs; before bias correction"
        )
        max_drop: float | None = option(
            None,
            "leave the fewest layers in float for at most this loss of agreement",
            unit="points",
            low=0,
            high=100,
        )
        min_sqnr: float | None = option(
            None, "leave the fewest layers in float for the outputs to keep this signal to noise", unit="dB"
        )

        def __post_init__(self) -> None:
            refuse_widths(self.activation_bits, self.layer_bits, self.activations)
            refuse_weight_widths(self.weight_bits, self.layer_weight_bits)
            if self.ranges is None:
                return
            if not self.activations:
                raise UsageError(
                    "int8(ranges=...) gives ranges of activations, and activations=false quantizes none; leave one of them out"
                )
            if (self.method, self.percentile) != (Int8.Config.method, Int8.Config.percentile):
                raise UsageError(
                    "int8(ranges=...) has ranges already, and method= and percentile= choose them from data; leave one of them out"
                )
            read_cache(self.ranges)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.goal = Goal(self.config.max_drop, self.config.min_sqnr)
        self.searches = self.config.sensitivity or bool(self.goal)
        only_strips = "*" in self.config.layers and not any(self.config.layers.values())
        self.adapts = self.config.rounding != "nearest"
        calibrates = (self.config.activations and self.config.ranges is None) or self.adapts
        needed = {
            "calibrator": calibrates,
            "runner": self.searches,
            "fitter": self.config.rounding == "blocks",
        }
        self.needs = () if only_strips else tuple(name for name, wanted in needed.items() if wanted)
        if self.config.ranges is not None:
            asked = {
                "sensitivity": self.config.sensitivity,
                "max_drop": self.config.max_drop is not None,
                "min_sqnr": self.config.min_sqnr is not None,
                f"rounding={self.config.rounding}": self.adapts,
            }
            self.measuring = tuple(name for name, wanted in asked.items() if wanted)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        pairs.state_zero_points(graph, report)
        cache = None if self.config.ranges is None else read_cache(self.config.ranges)
        unmatched = [] if cache is None else unmatched_names(graph, cache)
        treat_existing(graph, self.config.existing, report)
        chosen, skips = self.choose(graph, context)
        wide = wide_weights(chosen, skips, self.config.activation_bits, self.config.layer_bits)
        lowest, lacks = (pairs.WIDE_OPSET, "INT16") if wide else (pairs.LOWEST_OPSET, "scale per channel")
        if chosen and graph.opset < lowest:
            opset, reason = graph.opset, raise_opset(graph, lowest)
            if reason is not None:
                for node in layers_of(chosen):
                    report.skip(
                        node.name,
                        f"opset {opset} has no {lacks} and cannot be raised: {reason}; export at {lowest} or later",
                    )
                return report
            chosen, skips = self.choose(graph, context)
        report.skips += skips
        if chosen and self.config.activations:
            split_gates(graph, context.placement, report)
        measures = self.config.activations or self.searches or self.adapts or context.calibrator is not None
        base = export_model(graph) if chosen and measures else None
        largest = largest_levels(chosen, skips, self.config.weight_bits, self.config.layer_weight_bits)
        quantization = Quantization(base, self.config, context, cache, wide, largest)
        if chosen and self.searches:
            chosen = self._search(quantization, chosen, context, report)
        filled = filled_weights(chosen, graph.opset)
        written = quantization.apply(graph, [weight.name for weight in chosen], report) if chosen else []
        if not self.config.activations and (note := decoded_products.warning(layers_of(written))):
            report.warnings.append(note)
        if grown := [one for one in filled if one.name in {weight.name for weight in written}]:
            report.warnings.append(warning(grown))
        if base is not None and self.adapts:
            self._round(graph, base, written, largest, context, report)
        quantization.correct(graph, written, report, self.config.rounding == "blocks")
        if written:
            quantization.record(graph, report)
        fit_biases(graph, report)
        if report.metrics.get(OUTPUTS, LEAST_SQNR) < LEAST_SQNR:
            report.warnings.append(COLLAPSED.format(report.metrics[OUTPUTS]))
        rewire.sweep(graph)
        if base is not None and self.searches:
            found = context.need_runner().compare(base, as_computed(export_model(graph), context.placement))
            report.metrics |= {
                f"calibration_{name}": value for name, value in found.items() if math.isfinite(value)
            }
        keep_loadable(graph)
        if cache is not None:
            tell_of_cache(cache, unmatched, report)
            if written and self.config.bias_correction and context.calibrator is None:
                report.warnings.append(UNCORRECTED)
        report.metrics["layers"] = len({node.name for node in layers_of(written)})
        return report

    def _round(
        self,
        graph: Graph,
        base: onnx.ModelProto,
        written: list[Weight],
        largest: Mapping[str, int],
        context: Context,
        report: PassReport,
    ) -> None:
        """Chooses levels that need not be the nearest, of weights that layers compute with in INT8."""
        computed = [
            weight for weight in written if not weight.place and not is_weight_only(weight, context.placement)
        ]
        if self.config.rounding == HESSIAN:
            compensate_rounding(graph, base, written, largest, self.config.bias_correction, context, report)
        elif self.config.rounding == "blocks":
            fit_blocks(graph, base, computed, largest, context, self.config, report)
        else:
            adapt_rounding(graph, base, computed, largest, context, self.config.rounding_steps, report)

    def _search(
        self, quantization: Quantization, chosen: list[Weight], context: Context, report: PassReport
    ) -> list[Weight]:
        """Measures layers alone, as far as the options ask for it; skips those to be left in float and
        returns the others.
        """
        names = [weight.name for weight in chosen]
        measured = Sensitivity(quantization, names, context)
        if self.config.sensitivity:
            quantization.phrases = measured.record(report)
        left = measured.to_leave(self.goal) if self.goal else {}
        for weight in chosen:
            if weight.name in left:
                skip(weight, left[weight.name], report)
        if self.goal:
            report.metrics["left_in_float"] = len(left)
            if chosen and len(left) == len(chosen):
                report.warnings.append(f"no layer can be INT8 at {self.goal}: all stay in float")
        return [weight for weight in chosen if weight.name not in left]

    def choose(self, graph: Graph, context: Context) -> tuple[list[Weight], list[Skip]]:
        """Weights whose every reader is a layer that can be quantized, and for the layers of others the
        reason.
        """
        report = PassReport()
        found = list(weights(graph, refuse=report.skip, bodies=True, everywhere=True, filled=True))
        wanted = by_weight(
            self.config.layers, found, [skip.node for skip in report.skips], "int8(layers=...)"
        )
        chosen = []
        rows = Rows(graph)
        for weight in found:
            explicit = wanted.get(weight.name)
            for node in weight.nodes if explicit else ():
                node_metadata(node)[metadata.INT8] = "asked"
            reason = (
                "the option layers leaves it in float"
                if explicit is False
                else self._refusal(graph, weight, context.placement, rows, explicit is True)
            )
            if reason is None:
                chosen.append(weight)
            else:
                skip(weight, reason, report)
        return chosen, report.skips

    def _refusal(
        self, graph: Graph, weight: Weight, placement: Placement, rows: Rows, explicit: bool
    ) -> str | None:
        """Why the layers of this weight stay float; `explicit`: the option layers asks for it."""
        shape = (
            tuple(weight.tensor.shape)
            if isinstance(weight.tensor, Constant)
            else constant_shape(weight.tensor, graph.opset)
        )
        if weight.place and self.config.activations:
            return IN_BODY.format(weight.place)
        alone = is_weight_only(weight, placement)
        if alone and codebook_of(weight.tensor) is not None:
            return "its weight is a codebook, which takes less space than INT8"
        if alone and self.config.activations and not (explicit and is_stored_only(weight)):
            return WEIGHT_ALONE[str(weight.nodes[0].op)]
        for node in () if alone else weight.nodes:
            if reason := float_reason(node, shape, placement, rows):
                return reason
            if is_constant(node.inputs[0]):
                return "its input is constant"
        if reason := self._already(weight, alone):
            return reason
        if _is_stored_quantized(weight):
            return None  # existing=complete: it stays as it is, and what its layers read is quantized
        if len(shape) < 2:
            return "its weight is a vector"
        if len(shape) > 2 and any(node.op == "MatMul" for node in weight.nodes):
            return "its weight is a batch of matrices, for which ONNX Runtime has no scale per channel"
        if len({output_axis(node, len(shape)) for node in weight.nodes}) > 1:
            return "its weight is shared with a layer that has its output channels on another axis"
        if reason := other_use(graph, weight):
            return reason
        values = constant_value(weight.tensor, weight.opset)
        if values.dtype != np.float32:
            return f"its weight is {values.dtype}, not float32"
        return None if np.isfinite(values).all() else "its weight holds NaN or infinity"

    def _already(self, weight: Weight, alone: bool) -> str | None:
        """Why the Q/DQ that the model has stays all there is for this weight; None if there is more to do.
        `alone`: what its layers read does not matter.
        """
        stored = _is_stored_quantized(weight)
        if alone:
            return "already quantized" if stored else None
        reads = [pairs.is_dequantized(node.inputs[0]) for node in weight.nodes]
        if stored and (all(reads) or not self.config.activations):
            return "already quantized"
        if is_blocked(weight.tensor):
            return IN_BLOCKS
        if self.config.existing != "complete":
            return WEIGHT_ONLY if stored else INPUT_ONLY if any(reads) else None
        return None


def _is_stored_quantized(weight: Weight) -> bool:
    return "DequantizeLinear" in pairs.decoders(weight.tensor)
