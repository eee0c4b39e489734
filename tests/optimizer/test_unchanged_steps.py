"""A step that changes nothing spares its checks only where this very run has judged this very file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer import pipeline
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort

PLAIN = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
    <float[4] w = {1, 2, 3, 4}> {
    [one] a = Mul (x, w)
    [two] y = Relu (a)
}"""


def write(
    path: Path, change: Callable[[onnx.ModelProto], None] = lambda model: None, text: str = PLAIN
) -> Path:
    model = onnx.parser.parse_model(text)
    change(model)
    onnx.save(model, path)
    return path


def compiled(model: Path, *more: str, passes: str = "fold", code: int = 0) -> Path:
    out = model.parent / "out"
    command = [str(model), "--passes", passes, "--quiet", "--no-html", "--no-latency", "--out", str(out)]
    assert main([*command, *more]) == code
    return out


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What sessions were opened of, and what was tried as a user opens it."""
    found: list[Any] = []

    def watch(name: str) -> None:
        plain = getattr(ort, name)

        def watched(model: Any, *arguments: Any, **options: Any) -> Any:
            found.append((name, model))
            return plain(model, *arguments, **options)

        monkeypatch.setattr(ort, name, watched)

    watch("session")
    watch("survive")
    return found


def test_the_file_given_is_loaded_and_run_without_data(tmp_path: Path, opened: list[Any]) -> None:
    model = write(tmp_path / "m.onnx")
    out = compiled(model)
    assert ("survive", model) in opened
    assert ("session", model) in opened
    assert (out / "steps" / "01-fold.onnx").read_bytes() == model.read_bytes()


def test_a_file_that_cannot_run_is_refused_though_nothing_would_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "m.onnx", text=PLAIN.replace("Relu", "Nowhere"))
    out = compiled(model, code=2)
    assert "Nowhere" in capsys.readouterr().err
    assert not list(out.glob("steps/*.onnx"))


def test_a_model_that_fails_as_it_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2, 4] x) => (float[M, K] y)
        <int64[2] s = {3, 3}> { [one] y = Reshape (x, s) }"""
    compiled(write(tmp_path / "m.onnx", text=text), code=2)
    assert "Reshape" in capsys.readouterr().err


def unsorted(model: onnx.ModelProto) -> None:
    model.graph.node.sort(key=lambda node: node.output[0], reverse=True)


def old(model: onnx.ModelProto) -> None:
    model.ir_version = 3
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))


def traced(model: onnx.ModelProto) -> None:
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File secret.py")


def optional(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))


@pytest.mark.parametrize(
    ("change", "more"),
    [(unsorted, ()), (old, ()), (traced, ()), (optional, ("--drop-optional-inputs",))],
)
def test_a_model_that_was_prepared_is_written_and_checked(
    tmp_path: Path, opened: list[Any], change: Callable[[onnx.ModelProto], None], more: tuple[str, ...]
) -> None:
    model = write(tmp_path / "m.onnx", change)
    out = compiled(model, *more, passes="fold, fold")
    first, second = (out / "steps" / f"0{number}-fold.onnx" for number in (1, 2))
    assert ("survive", first) in opened
    assert ("survive", second) not in opened
    assert first.read_bytes() == second.read_bytes() != model.read_bytes()
    stored = model_file.load(first)
    assert [node.op_type for node in stored.graph.node] == ["Mul", "Relu"]
    assert [value.name for value in stored.graph.input] == ["x"]
    assert b"secret" not in first.read_bytes()


def test_a_step_of_an_earlier_run_is_not_taken_for_judged(tmp_path: Path, opened: list[Any]) -> None:
    model = write(tmp_path / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        taken = pipeline.run_step

        def interrupted(run: Any, index: int) -> None:
            if index == 1:
                raise KeyboardInterrupt
            taken(run, index)

        patch.setattr(pipeline, "run_step", interrupted)
        out = compiled(model, passes="fold, fold, fold", code=130)
    opened.clear()
    compiled(model, "--resume", passes="fold, fold, fold")
    steps = [out / "steps" / f"0{number}-fold.onnx" for number in (2, 3)]
    assert [("survive", one) in opened for one in steps] == [True, False]


def test_a_file_that_changes_meanwhile_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "m.onnx")
    taken = pipeline.run_step

    def meanwhile(run: Any, index: int) -> None:
        write(model, text=PLAIN.replace("{1, 2", "{5, 2"))
        taken(run, index)

    monkeypatch.setattr(pipeline, "run_step", meanwhile)
    out = compiled(model, code=2)
    assert "was changed while the command ran" in capsys.readouterr().err
    assert not list(out.glob("steps/*.onnx"))


def test_a_file_that_loads_with_help_alone_says_so_though_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float s = {0.1}, int8 z = {0}> {
        [one] a = QuantizeLinear (x, s, z)
        [two] y = DequantizeLinear (a, s, z)
    }"""
    monkeypatch.setattr(ort, "is_helped", lambda *_: True)
    model = write(tmp_path / "m.onnx", text=text)
    report = json.loads((compiled(model, passes="prune") / "report.json").read_text())
    assert [line for line in report["warnings"] if ort.HELPED in line]
    assert np.isfinite(report["steps"][0]["quality"]["size"])
