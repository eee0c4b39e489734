"""Quantizes the layers of chosen weights, in the graph of the pass or in copies of it that are only measured.

Ranges are calibrated once, on the network as it was before; a copy that needs one more makes one more run.
Or they come from a calibration cache, and what that has no range for stays in float.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node, Tensor, rewire
from onnx_lathe.passes.graph.layers import (
    Weight,
    constant_value,
    is_layer,
    is_stored_only,
    weights,
)
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization import pairs
from onnx_lathe.passes.graph.quantization.pair_order import adds_in_pairs, as_added, as_stored
from onnx_lathe.passes.graph.quantization.placement import (
    Operand,
    handing_on,
    operands,
    shared_parts,
)
from onnx_lathe.passes.graph.quantization.ranges import in_parts, say_ranges, stored_tensors
from onnx_lathe.passes.graph.quantization.simulation import as_computed
from onnx_lathe.passes.int8.bias import BiasCorrection
from onnx_lathe.passes.int8.cache import CalibrationCache
from onnx_lathe.passes.int8.ranges import choose_range
from onnx_lathe.passes.numerics.quantization import affine, pair_sums
from onnx_lathe.passes.numerics.quantization.scale_search import crushed_channels, least_error_scale
from onnx_lathe.placement import Placement

COARSER = 2
"""So many times as coarse as by its own range a part of a tensor may be rounded: one bit less."""
NO_RANGE = "its input '{}' has no range in {}"


class Quantization:
    """`config` is that of the pass; `base` the network before, which all but weights alone need. `cache`: where
    ranges come from, if not from data. `wide`: names of the weights whose layers read 16 bits; `largest`: the
    largest level of weights of fewer than 8 bits.
    """

    def __init__(
        self,
        base: onnx.ModelProto | None,
        config: Any,
        context: Context,
        cache: CalibrationCache | None = None,
        wide: Collection[str] = (),
        largest: Mapping[str, int] | None = None,
    ) -> None:
        self._base = base
        self.config = config
        self.context = context
        self.phrases: Mapping[str, str] = {}
        """What the report says of a weight besides, by its name."""
        self._wide = wide
        self._largest = largest or {}
        self._extremes: dict[str, tuple[float, float]] = {}
        """Minimum and maximum, 0 included: 16 bits need no range that leaves values out."""
        self._ranges: dict[str, tuple[float, float]] = {}
        self._unseen: set[str] = set()
        """Tensors without a range, because they hold NaN or infinity."""
        self._stored: list[list[str]] | None = None
        self._cache = cache
        self._correction: BiasCorrection | None = None
        if config.bias_correction and base is not None and context.calibrator is not None:
            self._correction = BiasCorrection(base, context.calibrator, context.placement)

    @property
    def base(self) -> onnx.ModelProto:
        """The network before."""
        if self._base is None:
            raise ValueError("the network before was not kept")
        return self._base

    def copy(self, names: Collection[str], corrected: bool = True) -> onnx.ModelProto:
        """The network before, with the layers of these weights quantized, as the targets compute it."""
        graph, unread = import_model(self.base), PassReport()
        written = self.apply(graph, names, unread)
        if corrected:
            self.correct(graph, written, unread)
        return as_computed(export_model(graph), self.context.placement)

    def apply(self, graph: Graph, names: Collection[str], report: PassReport) -> list[Weight]:
        """Quantizes the layers of the named weights in place. Returns the weights whose layers it could
        quantize.
        """
        chosen = [
            weight
            for weight in weights(
                graph, refuse=lambda node, reason: None, bodies=True, everywhere=True, filled=True
            )
            if weight.name in names
        ]
        writer = pairs.PairWriter(graph)
        if chosen and self.config.activations:
            chosen = self._activations(writer, chosen, report)
        for weight in chosen:
            self.context.progress(f"quantizing {weight.name}")
            self._weight(writer, weight, report)
        rewire.sweep(graph)
        return chosen

    def correct(
        self, graph: Graph, written: Sequence[Weight], report: PassReport, fitted: bool = False
    ) -> None:
        """Corrects the biases of what `apply` quantized, if the options and the data allow it; if they are `fitted`,
        measures the outputs alone.
        """
        if self._correction is not None and self._computed(written):
            self.context.progress("measuring outputs" if fitted else "correcting biases")
            self._correction.apply(graph, layers_of(self._computed(written)), report, fitted)

    def _computed(self, chosen: Sequence[Weight]) -> list[Weight]:
        """Those of the weights that are not merely stored in INT8, and not in bodies, where nothing is observed."""
        return [
            weight
            for weight in chosen
            if not weight.place and not is_weight_only(weight, self.context.placement)
        ]

    def _activations(
        self, writer: pairs.PairWriter, chosen: list[Weight], report: PassReport
    ) -> list[Weight]:
        """Puts Q/DQ pairs where the targets want them (placement.py). Returns the weights whose layers have
        them.
        """
        graph, placement = writer.graph, self.context.placement
        places = self._places(graph, chosen)
        self._find_ranges([node.inputs[index] for node, index in places])
        silent = {name for name, (low, high) in self._ranges.items() if low == high == 0}
        alive = []
        for weight in chosen:
            if unknown := self._without_range(weight):
                skip(weight, NO_RANGE.format(unknown, self.config.ranges), report)
            elif all(node.inputs[0].name in silent for node in weight.nodes):
                skip(weight, self._silence(weight.nodes[0].inputs[0]), report)
            else:
                alive.append(weight)
        layers = layers_of(self._narrow(alive))
        if len(alive) < len(chosen):
            places = self._places(graph, alive)
        ranges = self._ranges | self._lent(alive)
        for chain, parts in shared_parts(graph, layers, placement):
            known = [ranges[part.name] for part in parts if part.name in ranges]
            if len(known) == len(parts) and (whole := _common_range(known, placement.unsigned)):
                places = chain + places
                ranges |= {node.inputs[index].name: whole for node, index in chain}
                ranges |= {part.name: whole for part in parts}
        before = len(graph.nodes)
        wide = {id(node) for node in layers_of(alive)} - {id(node) for node in layers}
        for node, index in places:
            tensor = node.inputs[index]
            if pairs.is_dequantized(tensor):
                continue
            if tensor.name not in ranges and pairs.twin(tensor) is None:
                report.skip(node.name, NO_RANGE.format(tensor.name, self.config.ranges))
            elif any(ranges.get(tensor.name, (1, 1))):
                bits = affine.WIDE_BITS if id(node) in wide else 8
                self._operand(writer, node, index, ranges, report, bits)
            elif self._cache is not None:
                report.skip(node.name, self._cache.too_small(tensor))
        report.metrics["quantized_activations"] = (len(graph.nodes) - before) // 2
        return alive

    def _places(self, graph: Graph, chosen: Sequence[Weight]) -> list[Operand]:
        """What has to be quantized. Layers that read 16 bits want no neighbours on 8-bit integers."""
        narrow = layers_of(self._narrow(chosen))
        known = {id(node) for node in narrow}
        wide = [(node, 0) for node in layers_of(self._computed(chosen)) if id(node) not in known]
        return operands(graph, narrow, self.context.placement) + wide

    def _narrow(self, chosen: Sequence[Weight]) -> list[Weight]:
        return [weight for weight in self._computed(chosen) if weight.name not in self._wide]

    def _find_ranges(self, tensors: Sequence[Tensor]) -> None:
        """Calibrates what has no pair yet. Values that are handed on between two pairs get the range of the
        upper one unmeasured: rounded twice alike, they stay the same, and what a Pad adds is not among them.
        """
        wanted = dict.fromkeys(tensor.name for tensor in tensors if self._wide or pairs.twin(tensor) is None)
        upper = {tensor.name: self._upper(tensor, wanted) for tensor in tensors}
        if self._cache is not None:
            cached = {
                tensor.name: self._cache.range_of(tensor) for tensor in tensors if tensor.name in wanted
            }
            self._ranges |= {name: bounds for name, bounds in cached.items() if bounds is not None}
        else:
            self._calibrate([name for name in wanted if upper.get(name) is None], *self.stored()[:1])
        for name, known in upper.items():
            if known in self._ranges and (name in wanted or name in self._ranges):
                self._ranges[name] = self._ranges[known]

    def stored(self) -> list[list[str]]:
        """Tensors whose ranges `record` says, in parts: of one, the ranges are calibrated in one run."""
        if self._stored is None:
            graph = import_model(self.base)
            self._stored = in_parts(graph, stored_tensors(graph)) if self.context.placement.stored else []
        return self._stored

    def record(self, graph: Graph, report: PassReport) -> None:
        """Says the range of every tensor, where a target of the request stores it in INT8."""
        if not self.context.placement.stored or not self.config.activations:
            return
        names = [name for part in self.stored() for name in part]
        if self._cache is not None:
            tensors = graph.tensors()
            cached = {name: self._cache.range_of(tensors[name]) for name in names if name in tensors}
            self._ranges |= {name: bounds for name, bounds in cached.items() if bounds is not None}
        else:
            for part in self.stored():
                self._calibrate([], part)
        known = {name: self._ranges[name] for name in names if name in self._ranges}
        beside = self._beside_wide(graph) if self._wide else set()
        known |= {name: ends for name, ends in self._extremes.items() if name in beside}
        report.metrics["recorded_ranges"] = say_ranges(graph, known)

    def _beside_wide(self, graph: Graph) -> set[str]:
        """Tensors that layers on 16 bits write, and those behind their ReLU."""
        found = set[str]()
        for node in graph.nodes:
            if is_layer(node) and pairs.is_wide(node.inputs[0]):
                written = node.outputs[0]
                found.update(tensor.name for reader in written.outputs for tensor in reader.outputs)
                found.add(written.name)
        return found

    def _without_range(self, weight: Weight) -> str | None:
        """The tensor that a call of the weight's layers reads and of which no range is known; with data there is
        none.
        """
        read = [node.inputs[0] for node in layers_of(self._computed([weight]))]
        missing = [
            tensor.name
            for tensor in read
            if tensor.name not in self._ranges
            and not pairs.is_dequantized(tensor)
            and pairs.twin(tensor) is None
        ]
        return missing[0] if missing else None

    def _silence(self, tensor: Tensor) -> str:
        """Why a layer that reads this tensor, whose range is (0, 0), stays in float."""
        if self._cache is None:
            return "its input is zero on all calibration data"
        return self._cache.too_small(tensor)

    def _lent(self, alive: Sequence[Weight]) -> dict[str, tuple[float, float]]:
        """Ranges for calls that read nothing but zeros, as the first step of a recurrent cell does, of layers
        with other calls: theirs, in which zero is exact.
        """
        lent: dict[str, tuple[float, float]] = {}
        for weight in alive:
            names = [node.inputs[0].name for node in weight.nodes]
            known = {name: self._ranges[name] for name in names if name in self._ranges}
            heard = [bounds for bounds in known.values() if any(bounds)]
            if heard and len(heard) < len(known):
                widest = min(low for low, _ in heard), max(high for _, high in heard)
                lent |= {name: widest for name, bounds in known.items() if not any(bounds)}
        return lent

    def _upper(self, tensor: Tensor, wanted: Collection[str]) -> str | None:
        """The uppermost tensor that hands its values on to this one and has a range, or is to get one."""
        above = [node.inputs[0].name for node in handing_on(tensor, self.context.placement)]
        return next((name for name in reversed(above) if name in self._ranges or name in wanted), None)

    def _calibrate(self, names: Sequence[str], optional: Sequence[str] = ()) -> None:
        """`optional`: tensors that may be left without a range."""
        known = self._ranges.keys() | self._unseen
        missing = [name for name in dict.fromkeys([*names, *optional]) if name not in known]
        if missing:
            self.context.progress("calibrating")
            extra = (set(optional).difference(names),) if optional else ()
            statistics = self.context.need_calibrator().statistics(self.base, missing, *extra)
            options = self.config.method, self.config.percentile, self.context.placement.unsigned
            self._ranges |= {name: choose_range(found, *options) for name, found in statistics.items()}
            self._extremes |= {
                name: (min(found.minimum, 0.0), max(found.maximum, 0.0)) for name, found in statistics.items()
            }
            self._unseen.update(name for name in missing if name not in statistics)

    def _operand(
        self,
        writer: pairs.PairWriter,
        node: Node,
        index: int,
        ranges: Mapping[str, tuple[float, float]],
        report: PassReport,
        bits: int,
    ) -> None:
        """Makes the node read its operand quantized, by the pair that there is or by a new one."""
        tensor = node.inputs[index]
        twin = pairs.twin(tensor, bits)
        if twin is None:
            low, high = ranges[tensor.name]
            if bits == affine.WIDE_BITS:
                low, high = self._extremes.get(tensor.name, (low, high))
            twin = writer.activation(tensor, low, high, bits)
            scale = affine.range_scale(low, high, bits)
            report.edit(
                node.name, f"{tensor.name} is INT{bits}: range {low:.4g} to {high:.4g}, scale {scale:.3g}"
            )
        else:
            report.edit(node.name, f"reads {tensor.name} as INT{bits}, like other layers")
        node.inputs[index] = twin

    def _weight(self, writer: pairs.PairWriter, weight: Weight, report: PassReport) -> None:
        if "DequantizeLinear" in pairs.decoders(weight.tensor):
            return  # existing=complete: with the scales that it has
        values, axis = constant_value(weight.tensor, weight.opset), weight.axis
        if pairs.has_directions(weight):
            values, axis = values.reshape(-1, values.shape[-1]), 0
        largest = self._largest.get(weight.name)
        layer, pairwise = weight.nodes[0], largest is None and self.context.placement.pairs
        pairwise = pairwise and not is_stored_only(weight) and adds_in_pairs(layer, values)
        levels, scales = np.empty(values.shape, np.int8), []
        signal, noise, crushed = 0.0, 0.0, 0
        for place in affine.slabs(values.shape, axis):
            part = values[place]
            levels[place], scale = self._levels(layer, part, axis, largest, pairwise)
            restored = affine.dequantize(levels[place], scale, axis)
            own = affine.energies(part, restored)
            signal, noise = signal + own[0], noise + own[1]
            crushed += crushed_channels(part, restored, axis)
            scales.append(scale)
        scale = np.concatenate(scales)
        writer.weight(weight, levels, scale)
        kind = "INT8" if largest is None else f"INT8 of {2 * largest + 1} levels"
        what = (
            f"weight is {kind}, {scale.size} scales: {affine.decibels(signal, noise):.1f} dB signal to noise"
        )
        if crushed:
            what += f"; {crushed} channels have an outlier beside which most weights round to zero"
        for node in weight.nodes:
            report.edit(node.name, what + self.phrases.get(weight.name, ""))

    def _levels(
        self, layer: Node, values: np.ndarray, axis: int, largest: int | None, pairwise: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """INT8 levels and scales of some output channels of a weight. `pairwise`: neighbours must not saturate."""
        scale = (
            least_error_scale(values, axis, largest or affine.LEVELS)
            if self.config.weights == "mse" or largest
            else affine.channel_scale(values, axis)
        )
        levels = affine.quantize(values, scale, axis, largest)
        if not pairwise:
            return levels, scale
        rows, scale = pair_sums.without_saturation(as_added(layer, values), scale)
        return as_stored(layer, rows, values.shape), scale


def is_weight_only(weight: Weight, placement: Placement) -> bool:
    """Whether INT8 can only be how the weight is stored: its layers read float, and compute in float."""
    return is_stored_only(weight) or any(
        node.op == "ConvTranspose" and node.op not in placement.layers for node in weight.nodes
    )


def _common_range(parts: Sequence[tuple[float, float]], unsigned: bool) -> tuple[float, float] | None:
    """The range of a tensor whose parts have these, if it rounds none of them much more coarsely than their
    own; parts of zeros are exact in any.
    """
    heard = [bounds for bounds in parts if any(bounds)]
    if not heard:
        return None
    low, high = min(low for low, _ in heard), max(high for _, high in heard)
    steps = [_width(*bounds, unsigned) for bounds in heard]
    return (low, high) if _width(low, high, unsigned) <= COARSER * min(steps) else None


def _width(low: float, high: float, unsigned: bool) -> float:
    """What a step is proportional to."""
    return max(high, 0.0) - min(low, 0.0) if unsigned else max(-low, high)


def layers_of(chosen: Sequence[Weight]) -> list[Node]:
    return [node for weight in chosen for node in weight.nodes]


def skip(weight: Weight, reason: str, report: PassReport) -> None:
    for node in weight.nodes:
        report.skip(node.name, reason)
