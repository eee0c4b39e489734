"""Manners of the command: results are not erased in silence, JSON is one document, words that others use are known."""

import io
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import cli, surroundings
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.report.sensitivity import show_sensitivity, without_sensitivity
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime import threads
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.command import refused


def small(folder: Path, name: str = "small.onnx", opset: int = 21) -> Path:
    model = build(
        "(float[N, 40] x) => (float[N, 50] y) { h = MatMul (x, w) y = Relu (h) }", opset, w=random(40, 50)
    )
    onnx.save(model, folder / name)
    return folder / name


def test_results_of_another_recipe_or_model_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other, out = small(tmp_path), small(tmp_path, "other.onnx"), tmp_path / "out"
    common = ["--out", str(out), "--no-latency", "--quiet"]
    sparse = ["--passes", "prune(sparsity=0.5)"]
    assert main([str(first), *sparse, *common]) == 0
    before = (out / "model.onnx").read_bytes()
    capsys.readouterr()
    line = refused(capsys, [str(first), "--passes", "prune(sparsity=0.6)", *common])
    assert f"{out}: holds the results of another recipe; give --out {out}-2, or --force to erase them" in line
    assert "another model; give" in refused(capsys, [str(other), *sparse, *common])
    (tmp_path / "out-2").mkdir()
    assert f"{out}-3" in refused(capsys, [str(other), *sparse, *common])
    assert (out / "model.onnx").read_bytes() == before


def test_the_same_recipe_runs_again_resumes_and_is_forced(tmp_path: Path) -> None:
    model, out = small(tmp_path), tmp_path / "out"
    common = [str(model), "--out", str(out), "--no-latency", "--quiet"]
    assert main([*common, "--passes", "prune(sparsity=0.5)"]) == 0
    assert main([*common, "--passes", "prune(sparsity=0.5)"]) == 0
    assert main([*common, "--passes", "prune(sparsity=0.5)", "--resume"]) == 0
    assert main([*common, "--passes", "prune(sparsity=0.6)", "--force"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["steps"][0]["options"]["sparsity"] == 0.6
    with pytest.raises(UsageError, match="another recipe"):
        onnx_lathe.optimize(model, "fold", out=out, latency=False)
    assert onnx_lathe.optimize(model, "fold", out=out, latency=False, force=True).exit_code == 0


@pytest.mark.parametrize(
    "word, told",
    [
        ("quantize", "the pass int8: optimize MODEL --passes int8"),
        ("Cluster", "the pass codebook"),
        ("fp16", "the pass float16"),
        ("prune_channels", "the pass prune_channels"),
        ("int8", "the pass int8"),
        ("quantise", "the pass int8"),
        ("profile", "the command: optimize inspect MODEL"),
        ("compress", "the command: optimize pack MODEL"),
        ("compare", "the command: optimize gate BASE CANDIDATE"),
        ("inspct", "'inspect'"),
        ("quantze", "the pass int8"),
        ("xyzzy", "see: optimize --help"),
    ],
)
def test_a_word_that_is_no_file_is_understood(
    word: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, [word, "model.onnx"])
    assert f"{word}: there is no such file or command" in line
    assert told in line


def test_every_word_leads_to_a_pass_or_command_that_there_is() -> None:
    from onnx_lathe.optimizer import words

    assert set(words.PASS_WORDS) <= set(all_passes())
    assert set(words.COMMAND_WORDS) == set(cli.COMMANDS)
    assert set(words.PASS_WORDS) >= set(all_passes()) - {"prune_nm", "winograd"}


def test_json_is_one_document_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, packed = small(tmp_path), tmp_path / "small.lathe"
    commands = {
        "passes": ["passes"],
        "one pass": ["passes", "prune"],
        "targets": ["targets"],
        "inspect": ["inspect", str(model)],
        "gate": ["gate", str(model), str(model), "--gate", "size ratio >= 1"],
        "pack": ["pack", str(model), "-o", str(packed)],
        "unpack": ["unpack", str(packed), "-o", str(tmp_path / "back.onnx")],
        "check": ["check", str(model), "--target", "ort"],
        "build": ["build", str(model), "--target", "onnx", "--out", str(tmp_path / "built")],
        "compile": [str(model), "--passes", "fold", "--no-latency", "--out", str(tmp_path / "out")],
    }
    found = {}
    for name, command in commands.items():
        assert main([*command, "--json", "--quiet"]) == 0, name
        captured = capsys.readouterr()
        found[name] = json.loads(captured.out)
        assert captured.err == "", name
    assert {entry["name"] for entry in found["passes"]} == set(all_passes())
    assert "training" in {option["name"] for option in found["one pass"]["options"]}
    assert found["inspect"]["whole"]["parameters"] == 2000
    assert found["gate"]["passed"] is True
    assert found["pack"]["packed_bytes"] == packed.stat().st_size
    assert found["unpack"]["onnx_bytes"] == model.stat().st_size
    assert found["check"][0]["target"] == "ort"


def test_a_failed_gate_is_json_too_and_a_loader_cannot_break_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small(tmp_path)
    (tmp_path / "loader.py").write_text(
        "import numpy as np\ndef batches():\n    print('hello')\n    yield np.ones((4, 40), np.float32)\n"
    )
    data = ["--data", f"{tmp_path / 'loader.py'}:batches"]
    command = ["gate", str(model), str(model), "--gate", "size ratio >= 2", "--gate", "sqnr >= 20"]
    assert main([*command, *data, "--json", "--quiet"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False
    assert [gate["passed"] for gate in told["gates"]] == [False, True]


def test_threads_reach_sessions_and_children_and_end_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    seen = []
    real = ort.onnxruntime.InferenceSession

    class Watched(real):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            seen.append((self.get_session_options().intra_op_num_threads, os.environ.get("OMP_NUM_THREADS")))

    monkeypatch.setattr(ort.onnxruntime, "InferenceSession", Watched)
    command = [
        str(small(tmp_path)),
        "--passes",
        "fold",
        "--no-latency",
        "--quiet",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--threads", "3", "--json"]) == 0
    assert seen
    assert set(seen) == {(3, "3")}
    assert json.loads(capsys.readouterr().out)["processor"]["threads"] == 3
    assert threads.limit() == 0
    assert "--threads takes a number from 1 to 9999, not 'many'" in refused(
        capsys, [*command, "--threads", "many"]
    )
    assert "not '0'" in refused(capsys, [*command, "--threads=0"])


def test_a_report_says_when_with_what_and_where(tmp_path: Path) -> None:
    record = onnx_lathe.optimize(small(tmp_path), "fold", out=tmp_path / "out", latency=False)
    assert record.libraries["numpy"] == np.__version__
    assert record.libraries["onnx"] == onnx.__version__
    assert record.started <= record.ended
    assert record.started.endswith("+00:00")
    assert record.processor["cores"] >= 1
    assert record.processor["name"]


def test_instruction_sets_are_read_from_what_linux_says(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"model name": "Some Processor", "flags": "fpu sse4_2 avx2 avx512_vnni other"}
    monkeypatch.setattr(surroundings, "_stated", lambda: stated)
    found = surroundings.processor()
    assert found["name"] == "Some Processor"
    assert found["flags"] == ["sse4_2", "avx2", "avx512_vnni"]


def test_sensitivity_is_a_table_with_units() -> None:
    metrics = {
        "layers": 3.0,
        "sensitivity/conv[1].weight": 12.34,
        "sensitivity/b": 30.0,
        "sensitivity/c": 41.5,
    }
    console = Console(file=io.StringIO(), width=100)
    show_sensitivity(metrics, 2, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split() == ["rank", "changed", "alone", "outputs'", "SQNR", "(dB)"]
    assert lines[1].split() == ["1", "conv[1].weight", "12.3"]
    assert "and 1 less sensitive" in lines[3]
    assert without_sensitivity(metrics) == {"layers": 3.0}
