"""Gates and reports on models with weights and products in recurrent layers, bodies and foreign operators."""

import json
from pathlib import Path

import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.graph.bodies import graph_protos
from tests.support.bodies import branches, loop
from tests.support.builders import build, random
from tests.support.command import refused


def recurrent() -> onnx.ModelProto:
    """A convolution and an LSTM, which has nearly all weights."""
    return build(
        """(float[N, 4, 6] x) => (float[6, N, 16] y) {
            c = Conv <pads = [1, 1]> (x, k)
            t = Transpose <perm = [2, 0, 1]> (c)
            o = LSTM <hidden_size = 16> (t, w, r)
            axis = Constant <value = int64[1] {1}> ()
            y = Squeeze (o, axis)
        }""",
        k=random(8, 4, 3),
        w=random(1, 64, 8),
        r=random(1, 64, 16),
    )


def endless() -> onnx.ModelProto:
    """A Loop that ends when it likes, with a product in its body."""
    model = loop()
    model.graph.input.append(onnx.helper.make_tensor_value_info("trips", onnx.TensorProto.INT64, []))
    del model.graph.initializer[0]
    return model


def saved(model: onnx.ModelProto, folder: Path) -> str:
    onnx.save(model, folder / "model.onnx")
    return str(folder / "model.onnx")


def compiled(model: onnx.ModelProto, folder: Path, *arguments: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    out = folder / "out"
    code = main([saved(model, folder), "--out", str(out), "--no-latency", "--quiet", *arguments])
    return code, json.loads((out / "report.json").read_text())


def zeros_of(path: Path) -> float:
    values = [
        onnx.numpy_helper.to_array(tensor)
        for graph in graph_protos(onnx.load(path).graph)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    return sum(int((value == 0).sum()) for value in values) / sum(value.size for value in values)


def test_sparsity_is_that_of_the_whole_model(tmp_path: Path) -> None:
    arguments = ["--passes", 'prune(layers={"k": 0.9}, sparsity=0)', "--gate", "sparsity >= 50%"]
    code, report = compiled(recurrent(), tmp_path, *arguments)
    assert code == 3
    quality = report["steps"][0]["quality"]
    assert quality["sparsity"] == pytest.approx(86 / (96 + 512 + 1024))
    assert quality["sparsity"] == pytest.approx(zeros_of(tmp_path / "out" / report["steps"][0]["file"]))
    assert quality["macs"] == 6 * (96 + 512 + 1024)
    assert quality["parameters"] == 96 + 512 + 1024


def test_a_gate_on_what_cannot_be_counted_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [saved(endless(), tmp_path), "--passes", "prune", "--out", str(tmp_path / "out"), "--quiet"]
    line = refused(capsys, [*arguments, "--gate", "macs ratio >= 2"])
    assert line.endswith(
        "gate 'macs ratio >= 2' cannot be judged: MACs of Loop_0 (Loop) are not counted: "
        "how often its body runs is known only when it runs"
    )
    assert not (tmp_path / "out").exists()


def test_the_gate_command_refuses_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(endless(), tmp_path)
    line = refused(capsys, ["gate", path, path, "--gate", "macs ratio >= 1"])
    assert "MACs of Loop_0 (Loop) are not counted" in line


def test_the_report_names_what_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = compiled(endless(), tmp_path, "--passes", "prune")
    assert code == 0
    named = [line for line in report["warnings"] if line.startswith("MACs of Loop_0 (Loop) are not counted")]
    assert len(named) == 1
    assert f"warning: {named[0]}" in " ".join(capsys.readouterr().out.split())
    assert "macs" not in report["baseline"]


def test_inspect_prints_bodies_and_what_is_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", saved(endless(), tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("Loop_0/body/MatMul_0 MatMul 32x32") for line in lines)
    assert any(line.startswith("MACs of Loop_0 (Loop) are not counted") for line in lines)


def test_a_body_that_a_pass_leaves_alone_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = compiled(branches(), tmp_path, "--passes", "tensor_train")
    assert code == 0
    start = (
        "step 1, tensor_train: no layer in the then_branch of If_1 was changed; If_1/then_branch/MatMul_0: "
    )
    assert [line for line in report["warnings"] if line.startswith(start)]
    assert "warning: no layer in the else_branch of If_1" in " ".join(capsys.readouterr().out.split())


def test_weights_that_a_caller_may_feed_are_not_left_out_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An initializer that is an input too, from IR version 4 on: nobody knows what it will be."""
    model = build(
        "(float[N, 64] x) => (float[N, 4] y) { a = MatMul (x, w)  y = MatMul (a, v) }",
        w=random(64, 64),
        v=0 * random(64, 4),
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 64]))
    arguments = [saved(model, tmp_path), "--passes", "fold", "--out", str(tmp_path / "out"), "--no-latency"]
    assert main([*arguments, "--gate", "sparsity >= 90%"]) == 2
    assert "--drop-optional-inputs" in capsys.readouterr().err
    assert main([*arguments, "--gate", "sparsity >= 90%", "--drop-optional-inputs"]) == 3
