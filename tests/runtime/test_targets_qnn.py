"""Target `qnn` in the package: what it compiles, what the simulator computes of it, and what is refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import ModelError, TargetError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.placement import PHONE
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.base import Artifact
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.qnn import library, process
from onnx_lathe.runtime.targets.qnn.options import QnnConfig
from tests.support import builders, qnn
from tests.support.builders import random
from tests.support.command import refused
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, lowered, network, quantized, relative

pytest.importorskip("onnxruntime_qnn")
pytestmark = pytest.mark.skipif(not library.simulates(), reason="the simulator is for Linux on x86-64")

FILES = ["model_ctx.json", "model_ctx.onnx", "model_ctx_qnn.bin"]
QUIET = lambda text: None  # noqa: E731
STEP = 2.0 / 127
"""Of the last pair's range, about what the tensors of `residual` hold."""


def build(model: onnx.ModelProto, out: Path, **options: object) -> Artifact:
    out.mkdir(exist_ok=True)
    source = out.parent / f"{out.name}.onnx"
    onnx.save(model, source)
    return find("qnn")().build(source, out, QnnConfig(**options), QUIET)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build(qnn.residual(), tmp_path_factory.mktemp("built") / "out")


@pytest.fixture
def copied(built: Artifact, tmp_path: Path) -> Path:
    """Files that a test may damage."""
    for path in built.paths:
        shutil.copy(path, tmp_path)
    return tmp_path / "model_ctx.onnx"


def test_int8_is_one_program_and_computes_what_onnx_runtime_does(built: Artifact) -> None:
    assert names(built.paths[0].parent) == FILES
    assert (built.details["programs"], built.details["int8_layers"], built.facts) == (1, 2, ())
    assert built.size_bytes == sum(path.stat().st_size for path in built.paths[:2])
    session = find("qnn")().open(built, QnnConfig())
    assert session is not None
    assert [value.shape for value in session.get_inputs()] == [["x_0", 3, 16, 16]]
    (found,) = session.run(None, qnn.IMAGES)
    session.close()
    (wanted,) = ort.run(ort.session(qnn.residual()), qnn.IMAGES).values()
    np.testing.assert_allclose(found, wanted, atol=1.5 * STEP)
    assert np.ptp(wanted) > 20 * STEP


BETWEEN = """(float[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem, b8)  %s  y = Conv <pads = [1, 1, 1, 1]> (b, second, b8) }"""


def simulated(model: onnx.ModelProto, folder: Path, bits: int = 8) -> tuple[Artifact, float]:
    """What is built of a float network, quantized with so many bits, and how far the simulator is from ONNX Runtime."""
    canonical, _ = quantized(model, PHONE, activation_bits=bits)
    form, _ = lowered(canonical, "qnn", PHONE)
    artifact = build(form, folder)
    session = find("qnn")().open(artifact, QnnConfig())
    assert session is not None
    (found,) = session.run(None, {"x": IMAGES})
    session.close()
    wanted = ort.run(ort.session(form, optimized=False), {"x": IMAGES})["y"]
    return artifact, relative(wanted, found)


@pytest.mark.parametrize(("text", "layers"), [(RESIDUAL, 4), (MOBILE, 8)], ids=["residual", "mobile"])
@pytest.mark.parametrize(("bits", "near"), [(8, 0.015), (16, 0.01)])
def test_what_int8_makes_is_one_program(
    tmp_path: Path, text: str, layers: int, bits: int, near: float
) -> None:
    artifact, off = simulated(network(text, 21), tmp_path / "out", bits)
    assert (artifact.details["programs"], artifact.details["int8_layers"]) == (1, layers)
    assert off < near


@pytest.mark.parametrize(
    "operator",
    ["HardSigmoid", "LeakyRelu", "Neg", "Selu", "Softplus", "HardSwish", "Pad", "LogSoftmax <axis = 1>"],
)
def test_operators_between_pairs(tmp_path: Path, operator: str) -> None:
    """Between INT8 pairs HTP refuses four of these, and pads with other values."""
    text = BETWEEN % (
        "p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (a)  b = MaxPool <kernel_shape = [3, 3]> (p)"
        if operator == "Pad"
        else f"b = {operator} (a)"
    )
    artifact, off = simulated(network(text, 10 if operator == "Pad" else 17), tmp_path / "out")
    assert artifact.details["programs"] == 1
    assert off < 0.03


def test_a_float_model_computes_in_float16_and_says_so(tmp_path: Path) -> None:
    model = qnn.residual(batch=2, int8=False)
    artifact = build(model, tmp_path / "out")
    assert artifact.facts == ("it computes in float16: no layer is quantized",)
    target, feeds = find("qnn")(), {"x": qnn.IMAGES["x"][:2]}
    found = target.verify(tmp_path / "out.onnx", artifact, QnnConfig(), feeds, QUIET, model)
    assert 0 < found["verified"]["relative_error"] < 2e-3
    assert "onnxruntime-qnn" in found["verified"]["in"]
    reopened = target.reopen(artifact.paths[0])
    assert reopened.session.get_inputs()[0].shape == [2, 3, 16, 16]
    (one,) = reopened.session.run(["y"], feeds)
    reopened.session.close()
    assert one.shape == (2, 8, 1, 1)


def test_a_batch_written_as_minus_one_is_open(tmp_path: Path) -> None:
    model = qnn.residual()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    session = find("qnn")().open(build(model, tmp_path / "out"), QnnConfig())
    assert session is not None
    assert session.run(None, qnn.IMAGES)[0].shape == (5, 8, 1, 1)
    session.close()


@pytest.mark.parametrize(
    "output, node",
    [
        ("[M, 8]", "t = Transpose <perm = [0, 2, 3, 1]> (c) y = Reshape(t, rows)"),
        ("[8, N]", "p = GlobalAveragePool(c) f = Flatten(p) y = Transpose <perm = [1, 0]> (f)"),
        ("[L, N, 8]", "p = ReduceMean <axes = [3], keepdims = 0> (c) y = Transpose <perm = [2, 0, 1]> (p)"),
    ],
    ids=["rows", "columns", "sequence"],
)
def test_samples_that_do_not_lie_along_the_first_axis(tmp_path: Path, output: str, node: str) -> None:
    """Each call takes one sample; together they are what ONNX Runtime gives of all."""
    stored = {"w": random(8, 3, 3, 3), **({"rows": np.array([-1, 8])} if "rows" in node else {})}
    text = f"(float[N, 3, 4, 4] x) => (float{output} y) {{ c = Conv <pads = [1, 1, 1, 1]> (x, w) {node} }}"
    model, feeds = builders.build(text, **stored), {"x": random(3, 3, 4, 4)}
    artifact = build(model, tmp_path / "out")
    target = find("qnn")()
    target.verify(tmp_path / "out.onnx", artifact, QnnConfig(), feeds, QUIET, model)
    session = target.open(artifact, QnnConfig())
    assert session is not None
    (found,) = session.run(None, feeds)
    session.close()
    np.testing.assert_allclose(found, ort.run(ort.session(model), feeds)["y"], atol=0.02)


def test_an_output_of_all_samples_together_is_refused(tmp_path: Path) -> None:
    model = builders.build("(float[N, 3] x) => (float[1, 3] y) { y = ReduceMean <axes = [0]> (x) }")
    session = find("qnn")().open(build(model, tmp_path / "out"), QnnConfig())
    assert session is not None
    with pytest.raises(ModelError, match=r"output 'y' \[1, 3\] is of 1 samples together, and 2 are given"):
        session.run(None, {"x": random(2, 3)})
    session.close()


def test_one_file_holds_the_program_too(tmp_path: Path) -> None:
    artifact = build(qnn.residual(), tmp_path / "out", embed=True)
    assert names(tmp_path / "out") == FILES[:2]
    reopened = find("qnn")().reopen(artifact.paths[0])
    assert reopened.size_bytes == artifact.size_bytes > 10_000
    assert "SM8650" in reopened.device
    assert reopened.session.run(None, qnn.IMAGES)[0].shape == (5, 8, 1, 1)
    reopened.session.close()


def test_a_file_for_several_chips_is_not_simulated(tmp_path: Path) -> None:
    options = QnnConfig(soc="SM8650+SM8750+SM8850")
    artifact = build(qnn.residual(), tmp_path / "out", soc=options.soc)
    target = find("qnn")()
    assert artifact.details["chips"] == ["SM8650", "SM8750", "SM8850"]
    assert not target.runs_here(options)
    assert not target.runs_here(QnnConfig(simulate=False))
    assert target.verify(tmp_path / "out.onnx", artifact, options, qnn.IMAGES, QUIET, qnn.residual()) == {}
    with pytest.raises(
        TargetError, match="is for SM8650, SM8750, SM8850, and the simulator takes a file for one"
    ):
        target.reopen(artifact.paths[0])


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (
            qnn.with_erf(),
            {},
            r"SM8650 does not compute 'erf1' \(Erf\): Operators of type 'Erf' are not supported",
        ),
        (qnn.residual(sum_of_floats=True), {}, r"'conv2' \(Conv\): its weight or bias stays on the CPU"),
        (
            qnn.residual(int8=False),
            {"soc": "SM7675"},
            r"'conv1' \(Conv\), .*; SM7675 computes on integers alone: quantize all layers with int8",
        ),
    ],
    ids=["operator", "no pair", "no float16"],
)
def test_what_stays_on_the_cpu_is_named_and_nothing_is_left(
    tmp_path: Path, model: onnx.ModelProto, options: dict, said: str
) -> None:
    with pytest.raises(TargetError, match=said):
        build(model, tmp_path / "out", **options)
    assert names(tmp_path / "out") == []
    refusals = find("qnn")().refusals(model, QnnConfig(**options))
    assert refusals[0][0] in said


def test_a_crash_of_the_library_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "WORKER", "tests.support.dying_qnn")
    monkeypatch.setenv("DYING_QNN", "crash")
    with pytest.raises(
        TargetError, match=r"ended its process with signal SIGABRT; its last words: free\(\): invalid"
    ):
        build(qnn.residual(), tmp_path / "out")
    monkeypatch.setenv("DYING_QNN", "sleep")
    with pytest.raises(TargetError, match=r"not done within 0\.5 s; give more with time_limit"):
        build(qnn.residual(), tmp_path / "out", time_limit=0.5)
    assert names(tmp_path / "out") == []


def test_feeds_that_do_not_fit_are_refused(built: Artifact) -> None:
    session = find("qnn")().open(built, QnnConfig())
    assert session is not None
    for feeds, said in (
        ({}, "input 'x' .* is not fed"),
        (
            {"x": np.zeros((1, 3, 8, 16), np.float32)},
            r"input 'x' takes \[\?, 3, 16, 16\], not \[1, 3, 8, 16\]",
        ),
        ({"x": np.zeros((0, 3, 16, 16), np.float32)}, "not "),
    ):
        with pytest.raises(ModelError, match=said):
            session.run(None, feeds)
    session.close()


def test_files_that_do_not_belong_together_are_refused(copied: Path) -> None:
    target, binary = find("qnn")(), copied.with_name("model_ctx_qnn.bin")
    content = binary.read_bytes()
    binary.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(ModelError, match=r"was not written with model_ctx\.json"):
        target.reopen(copied)
    binary.unlink()
    with pytest.raises(ModelError, match=r"model_ctx_qnn\.bin: No such file"):
        target.reopen(copied)
    copied.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match="optimize build MODEL --target qnn"):
        target.reopen(copied)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that quantizes a float network, and compiles it."""
    folder = tmp_path_factory.mktemp("run")
    onnx.save(qnn.residual(int8=False), folder / "model.onnx")
    images = np.random.default_rng(2).standard_normal((40, *qnn.SHAPE)).astype(np.float32)
    np.savez(folder / "data.npz", **{"train/x": images[:32], "test/x": images[32:]})
    data = folder / "data.npz"
    result = onnx_lathe.optimize(
        folder / "model.onnx",
        "fold,int8",
        targets="qnn",
        calibration=f"{data}:train",
        eval=f"{data}:test",
        gates=["sqnr >= 20 dB", "latency <= 1000 ms"],
        out=folder / "out",
    )
    assert result.exit_code == 0
    return folder


def test_metrics_are_the_simulators_and_times_nobodys(compiled: Path) -> None:
    report = json.loads((compiled / "out" / "report.json").read_text())
    (target,) = report["targets"]
    assert sorted(target["files"]) == FILES
    assert target["measured"] == "in the simulator"
    assert target["quality"]["sqnr"] > 20
    assert "latency" not in target["quality"]
    assert target["details"]["int8_layers"] == 2
    judged = {(gate["gate"], gate["subject"]) for gate in report["gates"]}
    assert ("sqnr >= 20", "qnn") in judged
    assert any("did not judge" in text and "latency" in text for text in report["warnings"])


def test_run_shows_no_times(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context, data = compiled / "out" / "model_ctx.onnx", f"{compiled / 'data.npz'}:test"
    found = onnx_lathe.run(context, data, against=compiled / "model.onnx")
    assert found.metrics["sqnr"] > 20
    assert found.latency is found.against.latency_ratio is None  # type: ignore[union-attr]
    assert main(["run", str(context), "--data", data, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "SM8650: it is simulated" in said
    assert " ms" not in said


def test_a_gate_on_latency_cannot_be_judged(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, candidate = str(compiled / "model.onnx"), str(compiled / "out" / "model_ctx.onnx")
    data = ["--data", f"{compiled / 'data.npz'}:test", "--quiet"]
    said = refused(capsys, ["gate", base, candidate, "--gate", "latency ratio >= 2", *data])
    assert "its times say nothing of a chip's" in said
    assert main(["gate", base, candidate, "--gate", "sqnr >= 20 dB", *data]) == 0


def test_check_lists_what_the_compiler_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(qnn.with_erf(), tmp_path / "erf.onnx")
    assert main(["check", str(tmp_path / "erf.onnx"), "--target", "qnn"]) == 4
    assert "erf1" in capsys.readouterr().out


def test_open_sizes_need_data(tmp_path: Path) -> None:
    model = qnn.residual(int8=False)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(UsageError, match="'x' has sizes that are not fixed"):
        build(model, tmp_path / "out")
