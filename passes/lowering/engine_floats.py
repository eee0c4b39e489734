"""Which layers TensorRT's form leaves in float for the outputs' sake, measured in that form on calibration data.

A request may name other targets, whose layers int8 quantized as well: those are float here, and biases that
made up for their rounding are moved back (biases.py). What is left may still be too coarse: TensorRT has no
zero-point, so that a tensor whose values lie on one side has half of the levels. Where the outputs are below
LEAST_DB, layers of few bytes are looked for that bring them to WANTED_DB in float (exactness.py).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context, Fidelity
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_shape, is_constant
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata, taken_names
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import quantized_layers
from onnx_lathe.passes.graph.rewire import sweep
from onnx_lathe.passes.lowering.biases import (
    CanonicalLayer,
    Shifts,
    bias_shifts,
    canonical_layers,
    move_biases,
)
from onnx_lathe.passes.lowering.exactness import light_nodes
from onnx_lathe.passes.lowering.restoring import restore_canonical
from onnx_lathe.placement import Placement

LEAST_DB = 20.0
"""An error of the outputs of a tenth of their size. What is nearer to the original stays as it is."""
WANTED_DB = 23.0
"""More than that, since the layers are chosen on few samples, and others are used later."""
ALONE = "; a request for this target alone gives it weights, ranges and biases of its own"


@dataclass
class _Form:
    """A graph in TensorRT's form, as far as numbers go."""

    graph: Graph
    placement: Placement
    report: PassReport
    floats: Mapping[str, str]
    taken: set[str] = field(default_factory=set)
    layers: list[CanonicalLayer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers = canonical_layers(self.graph)
        restore_canonical(self.graph, self.placement, self.report, self.floats)
        self.taken = taken_names(self.graph)


def restore(graph: Graph, context: Context, report: PassReport, floats: Mapping[str, str]) -> None:
    """What `restore_canonical` does, with more layers in float where the outputs need that. Without calibration
    data, or with scales in half precision, nothing is measured. floats: layers that are float in any case, by name
    with the reason.
    """
    layers = canonical_layers(graph)
    if context.fidelity is None or not layers or any(layer.scale.dtype != np.float32 for layer in layers):
        restore_canonical(graph, context.placement, report, floats)
        return
    context.progress("comparing with the original")
    trials = _Trials(export_model(graph), context, context.fidelity, floats)
    more = trials.choose(report)
    form = _Form(graph, context.placement, report, {**floats, **more})
    move_biases(form, form.layers, trials.best(more)[1])


class _Trials:
    """Measures copies of the model, each set of layers in float once."""

    def __init__(
        self, model: onnx.ModelProto, context: Context, fidelity: Fidelity, given: Mapping[str, str]
    ) -> None:
        self.model, self.context, self.fidelity, self.given = model, context, fidelity, given
        self.known: dict[frozenset[str], tuple[float, Shifts]] = {}

    def choose(self, report: PassReport) -> dict[str, str]:
        """Layers to leave in float, each with the reason; the report says what that brings. None where most of
        them would have to be, or where that is not enough.
        """
        now = self.best(())[0]
        if (
            now >= LEAST_DB or now == -math.inf
        ):  # what ONNX Runtime does not run as it is here is judged when it is lowered
            return {}
        graph = self._form(()).graph
        names = {
            node.name: math.prod(constant_shape(node.inputs[WEIGHT_INPUT], graph.opset))
            for node in quantized_layers(graph)
            if is_constant(node.inputs[WEIGHT_INPUT]) and metadata.INT8 not in node_metadata(node)
        }
        left, reached = light_nodes(names, WANTED_DB, lambda some: self.best(some)[0])
        loss = f"in INT8 its outputs are at {now:.1f} dB on calibration data"
        if not left:
            report.warnings.append(f"{loss}, and layers in float do not mend that{self._advice()}")
            return {}
        if 2 * len(left) > len(names):
            report.warnings.append(
                f"{loss}; with {len(left)} of {len(names)} layers in float they would be at {reached:.1f} dB, and all stay "
                "in INT8; int8(min_sqnr=...) leaves layers in float"
            )
            return {}
        report.warnings.append(
            f"{loss}; left in float for that: {len(left)} of {len(names)} layers, with which they are at {reached:.1f} dB"
        )
        these = f"these {len(left)}" if len(left) > 1 else "it"
        return dict.fromkeys(
            left, f"in INT8 the outputs are at {now:.1f} dB, with {these} in float at {reached:.1f} dB"
        )

    def _advice(self) -> str:
        """What to do where weights and ranges were made for other targets, too."""
        return (
            ALONE if any(not is_dequantized(layer.node.inputs[0]) for layer in self._form(()).layers) else ""
        )

    def best(self, floats: Collection[str]) -> tuple[float, Shifts]:
        """(sqnr in dB, what biases are moved by), with these layers in float as well: of biases as they are, and moved,
        the better. Infinity where no output can be compared.
        """
        key = frozenset(floats)
        if key not in self.known:
            form = self._form(key)
            shifts, asis = self._shifts(form), self._sqnr(form)
            self.known[key] = asis, {}
            if shifts:
                move_biases(form, form.layers, shifts)
                moved = self._sqnr(form)
                if moved > asis:
                    self.known[key] = moved, shifts
        return self.known[key]

    def _form(self, floats: Collection[str]) -> _Form:
        form = _Form(
            import_model(self.model),
            self.context.placement,
            PassReport(),
            {**self.given, **dict.fromkeys(floats, "tried")},
        )
        sweep(form.graph)
        return form

    def _shifts(self, form: _Form) -> Shifts:
        """What a layer that is float again has to make up for no more; nothing where all are as int8 wrote them."""
        restored = [layer for layer in form.layers if not is_dequantized(layer.node.inputs[0])]
        if self.context.calibrator is None or not restored:
            return {}
        return bias_shifts(form, restored, self.context.calibrator)

    def _sqnr(self, form: _Form) -> float:
        found = self.fidelity.sqnr(export_model(form.graph))
        return math.inf if found is None else found
