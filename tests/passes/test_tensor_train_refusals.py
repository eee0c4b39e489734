"""What tensor_train leaves alone, and what other passes make of its cores."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata, set_sparse_tensors
from onnx_lathe.passes.prune.prune import Prune
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.passes.tensor_train.tensor_train import TensorTrain
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.builders import build, random, run

MATMUL = "(float[N, 24] x) => (float[N, 30] y) { y = MatMul (x, w) }"
CONV = "(float[N, 24, H, W] x) => (float[N, 30, P, Q] y) { y = Conv (x, w, b) }"


def split(model: onnx.ModelProto, sparse: str = "", **options: Any) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    if sparse:
        set_sparse_tensors(graph, {sparse: "unstructured"})
    report = configure(TensorTrain, {"min_size": 1, "macs": 99.0, "rank": 2} | options).apply(
        graph, Context()
    )
    return export_model(graph), report


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


BROKEN = random(24, 30)
BROKEN[3, 5] = np.inf
REFUSALS = {
    "transposed convolution": (
        "(float[N, 24, 5, 5] x) => (float[N, 30, 7, 7] y) { y = ConvTranspose (x, w) }",
        {"w": random(24, 30, 3, 3)},
        {},
        "it is a ConvTranspose; tensor_train splits Conv, Gemm and MatMul",
    ),
    "groups": (
        "(float[N, 24, 5, 5] x) => (float[N, 24, 3, 3] y) { y = Conv <group = 4> (x, w) }",
        {"w": random(24, 6, 3, 3)},
        {},
        "its channels are in 4 groups",
    ),
    "stack of matrices": (
        "(float[4, N, 24] x) => (float[4, N, 30] y) { y = MatMul (x, w) }",
        {"w": random(4, 24, 30)},
        {},
        "its weight has 3 dimensions, not 2",
    ),
    "small": (
        MATMUL,
        {"w": random(24, 30)},
        {"min_size": 721},
        "its weight has 720 elements, fewer than min_size=721",
    ),
    "rank 0": (MATMUL, {"w": random(24, 30)}, {"layers": {"w": 0}}, "its rank is set to 0"),
    "zeros that stay": (
        MATMUL,
        {"w": random(24, 30)},
        {"sparse": "w"},
        "its zeros must stay (lathe.sparse), and a tensor train would fill them",
    ),
    "not finite": (MATMUL, {"w": BROKEN}, {}, "its weight has NaN or infinite elements"),
    "two views": (
        "(float[N, 24] x) => (float[N, 24] y) { h = MatMul (x, w) y = Gemm <transB = 1> (h, w) }",
        {"w": random(24, 24)},
        {},
        "its layers read the weight in different ways",
    ),
    "two factors": (
        "(float[N, 24] x) => (float[N, 24] y) { h = MatMul (x, w) y = Gemm <alpha = 2.0> (h, w) }",
        {"w": random(24, 24)},
        {},
        "its layers read the weight in different ways",
    ),
    "another reader": (
        "(float[N, 24] x, int64[K] k) => (float[N, 30] y, float[K, 30] e) { y = MatMul (x, w) e = Gather (w, k) }",
        {"w": random(24, 30)},
        {},
        "its weight is also read by Gather_1",
    ),
    "output": (
        "(float[N, 24] x) => (float[N, 30] y, float[24, 30] w) { y = MatMul (x, w) }",
        {"w": random(24, 30)},
        {},
        "its weight is an output of the model",
    ),
    "run time": (
        "(float[N, 24] x, float[24, 30] w) => (float[N, 30] y) { y = Gemm (x, w) }",
        {},
        {},
        "its weight is computed at run time",
    ),
    "codebook": (
        "(float[N, 24] x) => (float[N, 30] y) { c = Cast <to = 6> (i) w = Gather (k, c) y = MatMul (x, w) }",
        {"i": np.zeros((24, 30), np.uint8), "k": random(4)},
        {},
        "its weight is stored as a codebook; tensor_train before codebook",
    ),
    "int8": (
        "(float[N, 24] x) => (float[N, 30] y) { w = DequantizeLinear (q, s) y = MatMul (x, w) }",
        {"q": np.zeros((24, 30), np.int8), "s": np.float32(0.1)},
        {},
        "its weight is stored as int8; tensor_train before int8",
    ),
    "double": (
        "(double[N, 24] x) => (double[N, 30] y) { y = MatMul (x, w) }",
        {"w": random(24, 30).astype(np.float64)},
        {},
        "its weight is float64, not float32",
    ),
    "scaled bias of run time": (
        "(float[N, 24] x, float[30] b) => (float[N, 30] y) { y = Gemm <beta = 2.0> (x, w, b) }",
        {"w": random(24, 30)},
        {},
        "its bias is computed at run time and scaled by beta=2",
    ),
    "unknown rank": (
        "(float[N, 24] x, int64[K] s) => (float[N, 30] y) { r = Reshape (x, s) m = MatMul (r, w) y = Reshape (m, t) }",
        {"w": random(24, 30), "t": np.array([-1, 30])},
        {},
        "how many dimensions its input has is not known before it runs",
    ),
    "no fewer parameters": (
        MATMUL,
        {"w": random(24, 30)},
        {"rank": None, "tolerance": 0.01},
        "ranks 24 give 1,296 parameters and 5,760 MACs per position, and it has 720 of both",
    ),
    "too much to shrink": (
        MATMUL,
        {"w": random(24, 30)},
        {"rank": None, "shrink": 20.0, "macs": 1.0},
        "ranks of 1 give 54 parameters and 240 MACs per position, and it has 720 of both: too many for shrink=20, macs=1",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_left_alone(case: str) -> None:
    text, stored, options, reason = REFUSALS[case]
    model = build(text, **stored)
    after, report = split(model, **options)
    assert [skip.reason for skip in report.skips] == [reason]
    assert (report.edits, report.metrics) == ([], {})
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in model.graph.node]
    for name, values in constants(model).items():
        np.testing.assert_array_equal(constants(after)[name], values)


def test_a_train_is_not_split_again() -> None:
    graph = import_model(build(MATMUL, w=random(24, 30)))
    settings = {"min_size": 1, "macs": 99.0, "rank": 2}
    configure(TensorTrain, settings).apply(graph, Context())
    for node in graph.nodes:
        node_metadata(node)[metadata.PASS] = "tensor_train"  # as the pipeline does
    report = configure(TensorTrain, settings).apply(graph, Context())
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_0_MatMul", "it is part of a tensor train"),
        ("MatMul_0_MatMul_1", "it is part of a tensor train"),
    ]
    assert report.edits == []


@pytest.mark.parametrize(
    "follower, settings", [(Codebook, {"bits": 4, "min_size": 1}), (Prune, {"sparsity": 0.5, "min_size": 1})]
)
def test_cores_are_weights_for_the_passes_behind(follower: type[Pass], settings: dict[str, Any]) -> None:
    model, _ = split(build(CONV, w=random(30, 24, 3, 3), b=random(30)), rank=8, cores=3)
    graph = import_model(model)
    report = configure(follower, settings).apply(graph, Context())
    changed = {edit.node for edit in report.edits} | {
        skip.node for skip in report.skips if "bytes would become" in skip.reason
    }
    assert changed == {"Conv_0_Conv", "Conv_0_MatMul", "Conv_0_MatMul_1", "Conv_0_MatMul_2"}
    assert len(report.edits) >= 2
    assert run(export_model(graph), {"x": random(2, 24, 5, 6)})["y"].shape == (2, 30, 3, 4)


class Noise(DataSource):
    """Unlabelled random samples: training imitates the teacher."""

    labelled = False
    fingerprint = description = "noise"

    def __init__(self, count: int, *shape: int) -> None:
        self.samples, self.count = (
            np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32),
            count,
        )

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch(inputs={"x": self.samples[start : start + size]}, labels=None)


@pytest.mark.parametrize(
    "text, stored, sample",
    [
        (
            "(float[N, 24] x) => (float[N, 30] y) { y = Gemm <transB = 1> (x, w, b) }",
            {"w": random(30, 24) / 5, "b": random(30)},
            (24,),
        ),
        (
            "(float[N, 8, 5, 5] x) => (float[N, 12] y) { h = Conv (x, w, b) g = GlobalAveragePool (h) y = Flatten (g) }",
            {"w": random(12, 8, 3, 3) / 5, "b": random(12)},
            (8, 5, 5),
        ),
    ],
    ids=["gemm", "conv"],
)
def test_all_cores_and_the_bias_are_trained(
    text: str, stored: dict[str, np.ndarray], sample: tuple[int, ...]
) -> None:
    model = build(text, **stored)
    after, _ = split(model, rank=3)
    cores = {name for name in constants(after) if "core" in name}
    assert trainable(after.graph) == cores | {"b"}
    for tensor in after.graph.initializer:
        if tensor.name in cores:  # the best train of this rank leaves training nothing to do; another does
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(values + values.std() * random(*values.shape), tensor.name)
            )
    graph = import_model(after)
    trainer = TorchTrainer(TrainingSetup(Noise(256, *sample), teacher=model))
    report = configure(Retrain, {"epochs": 6, "batch": 32, "rate": 0.02}).apply(
        graph, Context(trainer=trainer)
    )
    changed = {
        name
        for name, values in constants(export_model(graph)).items()
        if not np.array_equal(values, constants(after)[name])
    }
    assert changed == cores | {"b"}
    assert report.metrics["last_loss"] < 0.7 * report.metrics["first_loss"]
