"""The command as a user types it: results, exit codes, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.errors import TargetError
from onnx_lathe.optimizer import build
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.report.units import shown
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.running.evaluate import Quality
from onnx_lathe.runtime.targets.core.registry import find as find_target
from tests.support.command import compile_lenet, data_arguments
from tests.support.models import ROOT


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, lenet5: Path, small_mnist: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    passes = "fold,prune(sparsity=0.8),retrain(epochs=1),codebook(bits=4),int8"
    gates = ["--gate", "top1 drop <= 5%", "--gate", "size ratio >= 7"]
    arguments = [str(lenet5), "--passes", passes, *data_arguments(small_mnist), *gates, "--out", str(out)]
    assert main(arguments) == 0
    return out


def test_report_follows_its_schema(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    jsonschema.validate(report, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert [step["name"] for step in report["steps"]] == ["fold", "prune", "retrain", "codebook", "int8"]
    assert report["outcome"] == "done"
    assert all(gate["passed"] for gate in report["gates"])
    assert report["baseline"]["top1"] > 0.97
    assert report["steps"][1]["quality"]["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert report["steps"][-1]["quality"]["latency"] > 0


def test_every_checkpoint_is_a_model_that_runs(finished: Path) -> None:
    files = sorted((finished / "steps").glob("*.onnx"))
    assert [path.stem for path in files] == ["01-fold", "02-prune", "03-retrain", "04-codebook", "05-int8"]
    for path in [*files, finished / "model.onnx"]:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert session.run(None, {"image": np.zeros((3, 1, 28, 28), np.float32)})[0].shape == (3, 10)


def test_zeros_and_centroids_survive_to_the_end(finished: Path) -> None:
    model = onnx.load(finished / "model.onnx")
    codebooks = [
        tensor
        for tensor in model.graph.initializer
        if tensor.dims and tensor.dims[0] <= 16 and "codebook" in tensor.name
    ]
    assert len(codebooks) >= 3
    for tensor in codebooks:
        values = onnx.numpy_helper.to_array(tensor)
        assert np.count_nonzero(values == 0) == 1, f"{tensor.name} must hold exactly one zero"
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Gather"}


def test_a_failed_gate_is_exit_code_3_and_leaves_no_artifact(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_lenet(lenet5, small_mnist, tmp_path, passes="fold") == 0
    assert (tmp_path / "model.onnx").exists()
    assert (
        compile_lenet(
            lenet5,
            small_mnist,
            tmp_path,
            "--gate",
            "top1 drop <= 0.1%",
            "--force",
            passes="prune(sparsity=0.99)",
        )
        == 3
    )
    assert not (tmp_path / "model.onnx").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["outcome"] == "gate failed"
    assert not report["gates"][0]["passed"]
    assert "FAILED" in capsys.readouterr().out


def test_resume_continues_and_gives_the_same_model(lenet5: Path, small_mnist: Path, tmp_path: Path) -> None:
    assert compile_lenet(lenet5, small_mnist, tmp_path) == 0
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "steps" / "03-codebook.onnx").write_bytes(b"broken")
    (tmp_path / "steps" / "04-int8.onnx").unlink()
    before = (tmp_path / "steps" / "02-prune.onnx").stat().st_mtime_ns
    assert compile_lenet(lenet5, small_mnist, tmp_path, "--resume") == 0
    assert (tmp_path / "steps" / "02-prune.onnx").stat().st_mtime_ns == before
    assert (tmp_path / "model.onnx").read_bytes() == whole


def test_interrupted_run_resumes(
    lenet5: Path,
    small_mnist: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(all_passes()["codebook"], "apply", interrupt)
        assert compile_lenet(lenet5, small_mnist, tmp_path) == 130
    assert "--resume" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "steps").glob("*.onnx")) == [
        "01-fold.onnx",
        "02-prune.onnx",
    ]
    assert not (tmp_path / "model.onnx").exists()
    assert compile_lenet(lenet5, small_mnist, tmp_path, "--resume") == 0


def test_a_gate_that_a_lowered_model_fails_builds_nothing(
    lenet5: Path, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_target("tensorrt-rtx"), "available", lambda self: None)
    monkeypatch.setattr(build, "evaluate", lambda *_: Quality(top1=0.1))
    targets = ["--target", "onnx,tensorrt-rtx", "--gate", "top1 drop <= 5%"]
    assert compile_lenet(lenet5, small_mnist, tmp_path, *targets, passes="fold,codebook") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "steps"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(gate["subject"], gate["passed"]) for gate in report["gates"]] == [
        ("model", True),
        ("tensorrt-rtx", False),
    ]


def test_what_a_failed_build_leaves_is_listed_and_the_next_run_works(
    lenet5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, model: Path, directory: Path, *_: object) -> None:
        (directory / "model.tensorrt-rtx.engine.log").write_text("why")
        raise TargetError("no")

    monkeypatch.setattr(find_target("tensorrt-rtx"), "available", lambda self: None)
    monkeypatch.setattr(find_target("tensorrt-rtx"), "build", fail)
    command = [str(lenet5), "--passes", "fold", "--out", str(tmp_path), "--no-latency", "--quiet"]
    assert main([*command, "--target", "tensorrt-rtx"]) == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["targets"][0]["files"] == ["model.tensorrt-rtx.engine.log"]
    assert main(command) == 0
    assert not (tmp_path / "model.tensorrt-rtx.engine.log").exists()


def test_a_broken_pipe_keeps_the_exit_code(lenet5: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "onnx_lathe",
        str(lenet5),
        "--passes",
        "fold",
        "--gate",
        "size ratio >= 99",
        "--out",
        str(tmp_path),
    ]
    for more in ([], ["--json"]):
        process = subprocess.Popen(
            [*command, *more, "--quiet"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()
        process.communicate()
        assert process.returncode == 3


def test_passes_command_documents_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    listed = capsys.readouterr().out
    for name in all_passes():
        assert name in listed
        assert main(["passes", name]) == 0
        page = capsys.readouterr().out
        for option in all_passes()[name].Config.__dataclass_fields__:
            assert option in page


def test_inspect_counts_lenet5(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(lenet5)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.split()[:2] == ["all", "430,500"]  # and 580 biases
    assert "2.29 M" in last  # 288,000 + 1,600,000 + 400,000 + 5,000 MACs


def test_gate_command_judges_two_files(
    finished: Path, lenet5: Path, small_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "gate",
        str(lenet5),
        str(finished / "model.onnx"),
        "--data",
        f"{small_mnist}:test",
        "--preprocess",
        "scale=1/255",
    ]
    assert main([*common, "--gate", "top1 drop <= 5%", "--gate", "size ratio >= 7"]) == 0
    assert main([*common, "--gate", "size ratio >= 1000"]) == 3
    assert "FAILED" in capsys.readouterr().out


def test_what_onnx_runtime_runs_is_timed_and_judged_in_its_own_form(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(lenet5),
        "--passes",
        "fold,int8",
        *data_arguments(small_mnist),
        "--target",
        "ort",
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, "--gate", "latency ratio >= 0.0001"]) == 0
    printed = capsys.readouterr().out
    assert "gate passed (ort)  latency ratio" in printed
    assert "gate passed (model)" not in printed
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    quality = report["targets"][0]["quality"]
    assert f"latency {shown('latency', quality['latency'])}" in printed
    assert main([*arguments, "--gate", "latency ratio >= 1000"]) == 3
    assert "gate FAILED (ort)" in capsys.readouterr().out


def test_names_between_colons_are_printed_as_they_are(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", f"{small_mnist}:train", "--preprocess", "scale=1/255"]
    assert (
        main([str(lenet5), "--passes", "fold", *data, "--quiet", "--no-latency", "--out", str(tmp_path)]) == 0
    )
    assert f"{small_mnist}:train: split at random" in capsys.readouterr().out


def test_json_prints_the_record_alone(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(lenet5), "--passes", "fold", "--json", "--quiet", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "report.json").read_text())
