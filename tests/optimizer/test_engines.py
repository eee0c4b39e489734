"""Engines by the command: `optimize run`, `optimize gate`, and the report of a run whose target has a GPU."""

import json
import re
from pathlib import Path

import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from tests.support import gpu
from tests.support.builders import build
from tests.support.command import data_arguments, refused

pytestmark = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())
PIXELS = ["--preprocess", "scale=1/255", "--quiet"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    made = gpu.Machine(tmp_path, monkeypatch)
    made.install("10.13.3.9")
    return made


@pytest.fixture
def engine(machine: gpu.Machine, lenet5: Path, tmp_path: Path) -> Path:
    assert onnx_lathe.build(lenet5, "tensorrt(batch=1:8:16)", tmp_path / "built").exit_code == 0
    return tmp_path / "built" / "model.tensorrt.engine"


def test_an_engine_beside_its_original(
    engine: Path, lenet5: Path, small_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", f"{small_mnist}:test", *PIXELS, "--against", str(lenet5)]
    assert main(["run", str(engine), *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["library"] == "TensorRT 10.13.3.9"
    assert found["device"] == "Stand-in GPU (sm86)"
    assert found["metrics"]["top1"] == found["against"]["metrics"]["top1"] > 0.9
    assert found["metrics"]["agreement"] == 1
    assert found["samples"] > 16  # more than the engine takes at once
    assert set(found["ways"]) == {"call", "cuda_graph", "gpu_alone"}
    for timing in (found["latency"], found["against"]["latency"], *found["ways"].values()):
        assert 0 < timing["low_ms"] <= timing["median_ms"] <= timing["high_ms"] <= timing["p99_ms"]
    assert main(["run", str(engine), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "in TensorRT 10.13.3.9 on Stand-in GPU (sm86)" in shown
    for words in (r"99 of 100 calls +below", r"the same as a CUDA graph: \d", r"on the GPU alone, .*: \d"):
        assert re.search(words, shown)


def test_random_values_and_a_missing_gpu(
    engine: Path, machine: gpu.Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(engine), "--quiet"]) == 0
    assert "random values" in capsys.readouterr().out
    machine.has_gpu("")
    said = refused(capsys, ["run", str(engine), "--quiet"], code=4)
    assert said == (
        f"optimize: {engine}: cannot be run here: no NVIDIA GPU or driver was found (cuInit: CUDA_ERROR_NO_DEVICE)"
    )


def test_damaged_engines_are_refused(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.write_bytes(engine.read_bytes()[:-10])
    assert "not copied whole" in refused(capsys, ["run", str(engine)], code=2)
    Path(f"{engine}.json").unlink()
    assert "it says which library runs model.tensorrt.engine" in refused(capsys, ["run", str(engine)])
    assert "absent.engine: no such file" in refused(capsys, ["run", str(engine.with_name("absent.engine"))])


def test_a_gate_judges_the_engine(
    engine: Path, lenet5: Path, small_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(lenet5), str(engine), "--eval", f"{small_mnist}:test", *PIXELS]
    assert main(["gate", *arguments, "--gate", "sqnr >= 60", "--gate", "latency <= 1000"]) == 0
    assert main(["gate", *arguments, "--gate", "latency <= 0.0001"]) == 3
    capsys.readouterr()
    refused(capsys, ["gate", *arguments, "--gate", "macs <= 1"])


def run(lenet5: Path, data: Path, out: Path, *more: str) -> dict:
    arguments = [
        str(lenet5),
        "--passes",
        "fold",
        *data_arguments(data),
        "--target",
        "tensorrt",
        "--out",
        str(out),
        *more,
    ]
    code = main(arguments)
    return {"code": code, **json.loads((out / "report.json").read_text())}


def test_the_report_is_of_the_engine(
    machine: gpu.Machine, lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the terminal too."""
    found = run(lenet5, small_mnist, tmp_path / "out", "--gate", "sqnr >= 60")
    (target,) = found["targets"]
    assert found["code"] == 0
    assert target["measured"] == "as built"
    assert target["quality"]["top1"] > 0.9
    assert target["quality"]["latency"] > 0
    assert set(target["details"]["ways"]) == {"call", "cuda_graph", "gpu_alone"}
    assert target["details"]["ways"]["cuda_graph"]["p99_ms"] > 0
    assert [gate["subject"] for gate in found["gates"]] == ["model", "tensorrt"]
    shown = capsys.readouterr().out
    assert re.search(r"as built: .*latency", shown)
    assert re.search(r"the same as a CUDA graph: \d.* ms, 99 of 100 calls below", shown)
    machine.has_gpu("")
    assert "no NVIDIA GPU or driver" in refused(
        capsys,
        [
            str(lenet5),
            "--passes",
            "fold",
            *data_arguments(small_mnist),
            "--target",
            "tensorrt",
            "--out",
            str(tmp_path / "o"),
        ],
        4,
    )


def test_an_engine_for_other_gpus_is_judged_as_lowered(
    machine: gpu.Machine, lenet5: Path, small_mnist: Path, tmp_path: Path
) -> None:
    machine.install("1.7.1.116")
    arguments = [
        str(lenet5),
        "--passes",
        "fold",
        *data_arguments(small_mnist),
        "--target",
        "tensorrt-rtx(compute=sm89)",
    ]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--gate", "sqnr >= 60"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["targets"][0]["measured"] == "as lowered"
    assert found["targets"][0]["quality"]["sqnr"] is None or found["targets"][0]["quality"]["sqnr"] > 60
    assert [gate["subject"] for gate in found["gates"]] == ["model", "tensorrt-rtx"]


def test_a_gate_that_the_engine_fails_leaves_no_engine(
    machine: gpu.Machine, lenet5: Path, small_mnist: Path, tmp_path: Path
) -> None:
    """What fails is the engine: the stand-in adds noise, the model is whole."""
    machine.install("10.13.3.9", noise=0.5)
    found = run(lenet5, small_mnist, tmp_path / "out", "--gate", "sqnr >= 60")
    assert found["code"] == 3
    assert [(gate["subject"], gate["passed"]) for gate in found["gates"]] == [
        ("model", True),
        ("tensorrt", False),
    ]
    assert not list((tmp_path / "out").glob("*.engine*"))


def test_open_sizes_without_data(
    machine: gpu.Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random values are of the sizes that the engine is for."""
    model = build("(float[N, 1, H, W] x) => (float[N, 1, H, W] y) { y = Relu (x) }")
    onnx.save(model, tmp_path / "open.onnx")
    call = "tensorrt(shapes={x: 2x1x20x30:2x1x24x32:4x1x40x60})"
    arguments = [str(tmp_path / "open.onnx"), "--passes", "fold", "--target", call]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    (target,) = json.loads((tmp_path / "out" / "report.json").read_text())["targets"]
    assert target["measured"] == "as built"
    assert target["quality"]["latency"] > 0
    capsys.readouterr()
    engine = str(tmp_path / "out" / "model.tensorrt.engine")
    for more in ([], ["--against", str(tmp_path / "open.onnx")]):
        assert main(["run", engine, "--quiet", "--json", *more]) == 0
        (output,) = json.loads(capsys.readouterr().out)["outputs"]
        assert output["shape"] == [2, 1, 24, 32]


@pytest.mark.slow
def test_int8_that_does_not_pay_is_float(
    machine: gpu.Machine, lenet5: Path, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By times on the GPU, or by rules where none are taken, and either is said."""
    monkeypatch.setattr("onnx_lathe.runtime.targets.tensorrt.profiling.BUDGET_S", 0.02)
    names = [node.name for node in onnx.load(lenet5).graph.node if node.op_type in ("Conv", "Gemm")]
    slow = {names[1]: 1.0, f"{names[1]}|int8": 2.0}
    machine.install("10.13.3.9", slow | dict.fromkeys((name for name in names if name != names[1]), 1.0))
    data = ["--passes", "fold,int8", *data_arguments(small_mnist), "--target"]

    def target(call: str, out: str, *more: str) -> tuple[dict[str, str], list[str]]:
        assert main([str(lenet5), *data, call, "--out", str(tmp_path / out), *more]) == 0
        found = json.loads((tmp_path / out / "report.json").read_text())
        ruled = [text for text in found["warnings"] if "decided by published rules" in text]
        return {skip["node"]: skip["reason"] for skip in found["targets"][0]["skips"]}, ruled

    skips, ruled = target("tensorrt", "timed")
    assert list(skips) == [names[1]]
    assert skips[names[1]].startswith("on integers it takes 2")
    assert not ruled
    skips, ruled = target("tensorrt", "untimed", "--no-latency")
    assert names[1] not in skips
    assert skips[names[0]] == "by rule: a convolution of 1 to 20 channels gains nothing from INT8"
    assert len(ruled) == 1
