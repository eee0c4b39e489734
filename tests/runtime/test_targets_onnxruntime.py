"""The target ort: files, options, and verdicts read from ONNX Runtime's own graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.build import lower
from onnx_lathe.passes.core.services import Context
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.base import LayerVerdict
from onnx_lathe.runtime.targets.core.registry import find
from tests.support.builders import build, random
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, lowered, network, output, quantized

TARGET = find("ort")()


def built(tmp_path: Path, model: onnx.ModelProto, **options: bool):
    onnx.save(model, tmp_path / "source.onnx")
    (tmp_path / "out").mkdir()
    return TARGET.build(
        tmp_path / "source.onnx", tmp_path / "out", TARGET.Config(**options), lambda text: None
    )


def test_it_writes_the_lowered_model_and_counts_its_layers(tmp_path: Path) -> None:
    model, _ = lowered(quantized(network(RESIDUAL))[0])
    artifact = built(tmp_path, model)
    assert (
        [path.name for path in artifact.paths]
        == ["model.ort.onnx"]
        == [path.name for path in (tmp_path / "out").iterdir()]
    )
    assert artifact.details == {"int8_layers": 4, "float_layers": 0}
    np.testing.assert_array_equal(output(onnx.load(artifact.paths[0])), output(model))


def test_the_optimized_graph_computes_the_same(tmp_path: Path) -> None:
    model, _ = lowered(quantized(network(RESIDUAL))[0])
    artifact = built(tmp_path, model, optimized=True)
    assert sorted(path.name for path in artifact.paths) == ["model.ort.onnx", "model.ort.optimized.onnx"]
    before, after = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in artifact.paths
    )
    np.testing.assert_array_equal(ort.run(after, {"x": IMAGES})["y"], ort.run(before, {"x": IMAGES})["y"])
    assert {"QLinearConv", "QGemm"} <= {node.op_type for node in onnx.load(artifact.paths[1]).graph.node}


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE])
def test_every_layer_of_a_lowered_network_runs_in_int8(text: str) -> None:
    model, _ = lowered(quantized(network(text))[0])
    found = TARGET.layers(model)
    assert len(found) == sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    assert all(layer.int8 and not layer.reason for layer in found)
    assert TARGET.check(model, TARGET.Config()) == []


def test_verdicts_on_the_canonical_form_name_what_lies_between() -> None:
    model, _ = quantized(network(RESIDUAL), CANONICAL)
    before = model.SerializeToString(deterministic=True)
    reasons = {layer.node: layer.reason for layer in TARGET.layers(model) if not layer.int8}
    assert reasons["Conv_0"] == "its result is read by Relu before it is quantized"
    assert reasons["Conv_5"] == "its result is read by Add before it is quantized"
    assert dict(TARGET.check(model, TARGET.Config()))["Conv_5"] == f"{reasons['Conv_5']}: it runs in float"
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"activations": False}, "only its weight is quantized"),
        (None, "it is not quantized"),
        ({}, "its result is an output of the model"),
    ],
)
def test_other_reasons(options: dict[str, bool] | None, reason: str) -> None:
    model = build(
        "(float[N, 3, 12, 12] x) => (float[N, 5, 12, 12] y) { y = Conv (x, w) }", w=random(5, 3, 1, 1)
    )
    if options is not None:
        model, _ = quantized(model, CANONICAL, **options)
    (found,) = TARGET.layers(model)
    assert (found.int8, found.reason.startswith(reason)) == (False, True)


def test_a_product_of_two_activations_is_no_layer() -> None:
    model = build(
        "(float[3, 4] x, float[4, 3] z) => (float[3, 5] y) { p = MatMul (x, z)  y = MatMul (p, w) }",
        w=random(3, 5),
    )
    assert TARGET.layers(model) == [LayerVerdict("MatMul_1", "MatMul", False, "it is not quantized")]


def test_the_option_reaches_the_lowering() -> None:
    model, _ = quantized(network(RESIDUAL))
    _, report = lower(TARGET, TARGET.Config(reduce_range=True), model, Context())
    assert sum(edit.what == "weight has 7 bits" for edit in report.edits) == 4


def test_tensorrt_answers_by_its_rules() -> None:
    model, _ = lowered(quantized(network(MOBILE))[0], "tensorrt", CANONICAL)
    found = {layer.node: layer for layer in find("tensorrt")().layers(model)}
    assert not found["Conv_2"].int8
    assert found["Conv_2"].reason == "it is not quantized"
    assert sum(layer.int8 for layer in found.values()) == len(found) - 1


def test_a_model_that_does_not_load_is_named_without_a_temporary_path() -> None:
    model = build("(float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  y = Relu (h) }", w=random(4, 4))
    model.graph.node[-1].op_type = "Unknown"
    with pytest.raises(ModelError, match="cannot optimize the model: ") as caught:
        TARGET.layers(model)
    assert "lathe-" not in str(caught.value)
