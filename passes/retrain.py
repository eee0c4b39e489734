"""Retraining: the model's float weights are trained again, after a pass that changed them has cost accuracy.

The graph stays as it is; only values of float initializers change. Zeros named in `lathe.sparse` stay zero,
weights of a codebook go on sharing their centroids, Q/DQ pairs of activations and of codebooks round in the
forward pass and let gradients through. A weight stored as integers, as int8 leaves it, does not train: its
layer is skipped, and what is float around it adapts. By default the retrained model imitates the original
one (distillation) and learns from labels where there are any.

With winograd=float16 a convolution whose `lathe.conv_algorithm` is winograd23, 43 or 63 is computed so while
training runs, rounding as ncnn's kernels do in half precision (tiles.py), so that the network learns to stand it;
one whose `lathe.conv_precision` is float32 is not.
Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
section 3; "Deep Compression", ICLR 2016, section 3; Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015; Fernandez-Marques et al., "Searching for Winograd-aware Quantized Networks", MLSys 2020.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from onnx_lathe.errors import UsageError
from onnx_lathe.kernels import DIRECT, NAMES
from onnx_lathe.metadata import CONV_ALGORITHM, CONV_PRECISION
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.core.training_options import TrainingOptions, take_over
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.bodies import all_tensors
from onnx_lathe.passes.graph.layers import stored_in, weights
from onnx_lathe.passes.graph.model import (
    FOUR_BIT,
    export_model,
    node_metadata,
    set_sparse_tensors,
    sparse_tensors,
)
from onnx_lathe.passes.graph.quantization.ranges import measure_again
from onnx_lathe.tiles import NCNN, Tiles


@register
class Retrain(Pass):
    """Trains the weights, by labels and by imitating the original model."""

    name = "retrain"
    needs = ("trainer",)
    before = {
        "float16": "PyTorch trains float16 far slower on a CPU, to no better a network; put float16 last"
    }

    @dataclass(frozen=True)
    class Config(TrainingOptions):
        dense: bool = option(
            False, "first lift the sparsity: zeros are trained again, as in dense-sparse-dense"
        )
        winograd: str | None = option(
            None,
            "arithmetic in which training computes convolutions as lathe.conv_algorithm says; none: all are direct",
            choices=("float16",),
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.winograd and self.precision == "bfloat16":
                raise UsageError(
                    "retrain: bfloat16 rounds more coarsely than the float16 that winograd=float16 is about; "
                    "leave precision out"
                )

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        if self.config.dense:
            _lift(graph, report)
        operators = {node.op for node in graph.nodes}
        if self.config.normalization == "train" and "BatchNormalization" not in operators:
            report.skip("model", "it has no batch normalization; normalization=train changes nothing")
        if self.config.learn_scales and not operators & {"QuantizeLinear", "DequantizeLinear"}:
            report.skip("model", "it has no Q/DQ pairs; learn_scales=true changes nothing")
        for weight in weights(graph, refuse=lambda node, reason: None, bodies=True, everywhere=True):
            stored = stored_in(weight.tensor)[0]
            if _is_integer(stored):
                advice = "only its scales do" if self.config.learn_scales else "retrain before int8"
                for node in weight.nodes:
                    report.skip(
                        node.name, f"its weight is stored as {stored.dtype}, which does not train; {advice}"
                    )
        tiles = _transforms(graph, report) if self.config.winograd else {}
        trainer = context.need_trainer()
        result = trainer.train(export_model(graph), asdict(self.config), tiles=tiles)
        tensors = all_tensors(graph)
        for name, change in take_over(graph, result, report).items():
            report.edit(tensors[name].outputs[0].name, f"{name} changed by {100 * change:.3g} %")
        measure_again(graph, context)
        report.metrics.update(result.metrics)
        _compare(result.metrics, report)
        return report


def _lift(graph: Graph, report: PassReport) -> None:
    """No zero need stay any more.
    Source: Han et al., "DSD: Dense-Sparse-Dense Training for Deep Neural Networks", ICLR 2017, section 2.
    """
    sparse, tensors = sparse_tensors(graph), all_tensors(graph)
    for name in sparse:
        node = tensors[name].outputs[0].name if name in tensors and tensors[name].outputs else name
        report.edit(node, f"the zeros of {name} may change again")
    if not sparse:
        report.skip("model", "no weight has zeros that must stay; dense=true changes nothing")
    set_sparse_tensors(graph, {})


def _transforms(graph: Graph, report: PassReport) -> dict[str, Tiles]:
    """The tiles that convolutions of the graph carry the names of, which the report lists: those in float16."""
    found, sizes = {}, {name: m for m, name in NAMES.items()}
    for node in graph.nodes:
        said = node_metadata(node) if node.op == "Conv" else {}
        name = "" if CONV_PRECISION in said else said.get(CONV_ALGORITHM, "")
        m = sizes.get(name, DIRECT)
        if m > DIRECT:
            found[name] = NCNN[m]
            report.metrics[f"{name}_layers"] = report.metrics.get(f"{name}_layers", 0.0) + 1
    if not found:
        report.warnings.append(
            f"no convolution carries a choice of Winograd ({CONV_ALGORITHM}), so winograd=float16 changes nothing; "
            "run the pass winograd first, such as winograd(profile=arm64-fp16)"
        )
    return found


def _compare(measured: Mapping[str, float], report: PassReport) -> None:
    before, after = measured.get("winograd_sqnr_before"), measured.get("winograd_sqnr_after")
    if before is not None and after is not None and after < before:
        report.warnings.append(
            f"computed as lathe.conv_algorithm says, in float16, the network is farther from the original after "
            f"training ({after:.1f} dB) than before ({before:.1f} dB); give a smaller rate=, or leave winograd= out"
        )


def _is_integer(tensor: Constant) -> bool:
    """onnx-graphsurgeon gives the number of an element type that NumPy has no name for, such as bfloat16."""
    return not isinstance(tensor.dtype, int) and (
        np.issubdtype(tensor.dtype, np.integer) or tensor.dtype in FOUR_BIT
    )
