"""Bias correction: gives each quantized layer back the mean of its output, which quantization shifts.

    b  becomes  b + E[W x] - E[W_int8 x_int8]      per output channel; x is what the layer gets in the quantized network

Both means come from one run of the calibration data through the quantized network, with a float copy beside
each layer: each layer makes up for its own error alone. The network computes the means itself, so that no
layer's output is held. Differences to the float network, which hold the errors of all layers before as
well, would be made up for several times over unless the data is run once for each layer. A convolution or
Gemm without a bias gets one; a MatMul has the constant that is added behind it, if there is one. The
outputs of the network, or what its last Softmax reads, are compared before and after; the result of the
last layer, if they are infinite or hold as many values as there are objects. Where the correction brings
them no nearer to the float ones, the biases stay what they were.
Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
section 4.2, with calibration data for the expectations.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_shape, constant_value, weights
from onnx_lathe.passes.graph.model import export_model, import_model, taken_names, unused_name
from onnx_lathe.passes.graph.quantization import pairs
from onnx_lathe.passes.graph.quantization.bias_places import (
    BiasPlace,
    add_mean,
    bias_place,
    moved,
    observed,
)
from onnx_lathe.passes.graph.quantization.simulation import as_computed
from onnx_lathe.placement import Placement

OUTPUTS = "outputs_sqnr"
"""Metric: how near the outputs, or what the last Softmax reads, are to those of the float network on these
samples, in dB.
"""
KEPT_BYTES = 1 << 26
"""Outputs of the float network that are kept, to be compared with."""


class BiasCorrection:
    """Corrects quantized copies of one float network."""

    def __init__(self, original: onnx.ModelProto, calibrator: Calibrator, placement: Placement) -> None:
        self.original = original
        self.calibrator = calibrator
        self.placement = placement
        self.weights = {
            weight.name: weight
            for weight in weights(import_model(original), refuse=lambda node, reason: None, filled=True)
        }
        self.outputs: list[Mapping[str, np.ndarray]] = []
        """What the float network computes, batch by batch, as far as KEPT_BYTES allow."""

    def apply(self, graph: Graph, layers: Sequence[Node], report: PassReport, fitted: bool = False) -> None:
        """Corrects the biases of the quantized `layers`; the metrics get what the network's outputs gain by
        it, in dB of their error. `fitted`: biases are right, and the outputs are measured alone.
        """
        places = [place for node in layers if (place := bias_place(graph, node)) is not None]
        if not places:
            return
        saved, taken = [place.tensor for place in places], taken_names(graph)
        means, judged, before = self._before(graph, places, taken)
        if fitted:
            _tell(before, len(judged), report)
            return
        off = {}
        for place in places:
            mean, wanted = means[place.response]
            change = wanted - mean
            if np.isfinite(change).all():
                off[place.response] = float(np.abs(change).sum() / max(np.abs(wanted).sum(), 1e-30))
                place.set(moved(place, change, taken))
        after = self._error(graph, judged)
        report.metrics["bias_correction_gain_db"] = (
            10 * math.log10(before / after) if 0 < after < before else 0.0
        )
        _tell(min(before, after), len(judged), report)
        for place, tensor in zip(places, saved, strict=True):
            if (share := off.get(place.response)) is None:
                continue
            if not after < before:
                place.set(tensor)
            else:
                report.edit(
                    place.layer.name,
                    f"bias corrected: the means of its channels were off by {100 * share:.2g} %",
                )

    def _before(
        self, graph: Graph, places: Sequence[BiasPlace], taken: set[str]
    ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str], float]:
        """(Means of each layer's result, quantized and in float; tensors to judge by; their error now.)"""
        tensors = {one.name for one in self.original.graph.output if one.type.HasField("tensor_type")}
        outputs = [
            one for one in graph.outputs if one.dtype == np.float32 and one.inputs and one.name in tensors
        ]
        last = [places[-1].response]
        judged = list(dict.fromkeys(map(_scores, outputs))) or last
        self._keep_outputs(judged)
        beside, names = self._with_float_layers(graph, places, taken)
        averages, errors = self._measure(beside, [name for pair in names.values() for name in pair], judged)
        means = {response: (averages[ours], averages[float_]) for response, (ours, float_) in names.items()}
        finite = [name for name in judged if math.isfinite(errors[name])]
        if finite:
            return means, finite, sum(errors[name] for name in finite)
        self._keep_outputs(last)
        return means, last, self._error(graph, last)

    def _error(self, graph: Graph, judged: Sequence[str]) -> float:
        """Error of the quantized network in what is `judged`, summed."""
        _, errors = self._measure(as_computed(export_model(graph), self.placement), [], judged)
        return sum(errors.values())

    def _with_float_layers(
        self, graph: Graph, places: Sequence[BiasPlace], taken: set[str]
    ) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
        """The quantized network with a float copy beside each layer; by the layer's result, the names of the
        means of that and of the copy's.
        """
        model = as_computed(export_model(graph), self.placement)
        names, writers = {}, {name: node for node in model.graph.node for name in node.output}
        # In this order ONNX Runtime runs the nodes so that it can let go of each layer's output early.
        for place in reversed(places):
            other = self._add_float_layer(model, writers[place.response], place, taken)
            channels = self._channels(place.layer)
            ours = add_mean(model, place, place.response, channels, taken)
            names[place.response] = ours, add_mean(model, place, other, channels, taken)
        return model, names

    def _add_float_layer(
        self, model: onnx.ModelProto, quantized: onnx.NodeProto, place: BiasPlace, taken: set[str]
    ) -> str:
        """Adds the layer in float beside the quantized one: the same bias, what it reads before
        quantization. Returns its result's name.
        """
        weight = self.weights[_weight_name(place.layer, self.weights)]
        result, stored = (unused_name(f"{name}_float", taken) for name in (place.response, weight.name))
        taken.update((result, stored))
        source, inputs = place.layer.inputs[0], [tensor.name for tensor in place.layer.inputs]
        writers = source.inputs[0].inputs[0].inputs if pairs.is_dequantized(source) else []
        if (
            writers and writers[0].op == "QuantizeLinear"
        ):  # a model's own pairs may have a MaxPool on integers between them
            source = writers[0].inputs[0]
        copy = model.graph.node.add()
        copy.CopyFrom(quantized)
        copy.name = result
        del copy.input[:], copy.output[:]
        copy.input.extend([source.name, stored, *inputs[2:]])
        copy.output.append(result)
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(constant_value(weight.tensor, weight.opset), stored)
        )
        return result

    def _channels(self, layer: Node) -> int:
        weight = self.weights[_weight_name(layer, self.weights)]
        return int(constant_shape(weight.tensor, weight.opset)[weight.axis])

    def _keep_outputs(self, judged: Sequence[str]) -> None:
        if self.outputs and self.outputs[0].keys() == {*judged}:
            return
        self.outputs, size = [], 0
        for batch, _ in observed(self.calibrator, self.original, judged):
            size += sum(batch[name].nbytes for name in judged)
            if self.outputs and size > KEPT_BYTES:
                return
            self.outputs.append({name: batch[name].copy() for name in judged})

    def _measure(
        self, model: onnx.ModelProto, means: Sequence[str], judged: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """(means over all batches, error's energy over that of the float network's outputs, of each that is
        `judged`).

        NaN of an output that cannot be compared: it is infinite, or how many values it has depends on others.
        """
        signal, noise = dict.fromkeys(judged, 0.0), dict.fromkeys(judged, 0.0)
        totals: dict[str, np.ndarray] = {}
        samples = 0
        for index, (batch, count) in enumerate(observed(self.calibrator, model, [*means, *judged])):
            samples += count
            for name in means:
                totals[name] = totals.get(name, 0.0) + count * batch[name].astype(np.float64)
            for name in judged if index < len(self.outputs) else ():
                wanted = self.outputs[index][name].astype(np.float64)
                signal[name] += float(np.square(wanted).sum())
                with np.errstate(invalid="ignore"):  # of two infinities
                    noise[name] += (
                        float(np.square(wanted - batch[name]).sum())
                        if wanted.shape == batch[name].shape
                        else math.nan
                    )
        return {name: total / samples for name, total in totals.items()}, {
            name: noise[name] / max(signal[name], 1e-30) for name in judged
        }


def _tell(error: float, outputs: int, report: PassReport) -> None:
    if 0 < error < math.inf:
        report.metrics[OUTPUTS] = -10 * math.log10(error / outputs)


def _scores(tensor: Tensor) -> str:
    """What a Softmax or Sigmoid at the end of the network reads, or the output itself.

    Of probabilities, the few that are near no 0 and no 1 decide alone which of two networks is nearer.
    """
    name = str(tensor.name)
    while (
        tensor.inputs
        and tensor.inputs[0].op in ("Softmax", "LogSoftmax", "Sigmoid", "Identity")
        and not tensor.inputs[0].domain
    ):
        tensor = tensor.inputs[0].inputs[0]
        if not pairs.is_dequantized(tensor) and tensor.inputs:
            name = str(tensor.name)
    return name


def _weight_name(layer: Node, known: Collection[str]) -> str:
    """The name of the float tensor that the layer's weight was before: a codebook, which keeps its name, has
    a pair behind it.
    """
    tensor = layer.inputs[WEIGHT_INPUT]
    while tensor.name not in known:
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)
