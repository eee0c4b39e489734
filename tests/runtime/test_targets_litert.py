"""The target litert as a whole: what it writes, what it refuses, and that a wrong result is a failed build."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert")

import onnx_lathe
from onnx_lathe.errors import ModelError, TargetError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.distances import floors
from onnx_lathe.runtime.targets.litert import package
from onnx_lathe.runtime.targets.litert.file import Contents, pack
from onnx_lathe.runtime.targets.litert.litert import LiteRT
from onnx_lathe.runtime.targets.litert.reopen import reopen
from onnx_lathe.runtime.targets.litert.running import Opened
from onnx_lathe.runtime.targets.litert.session import open_file
from onnx_lathe.runtime.targets.litert.tensors import Tensor
from tests.support.builders import build, random

TEXT = """(float[N, 3, 8, 8] x) => (float[N, 5] y, float[N, 4, 8, 8] m) {
    [conv] m = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (m)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    [fc] y = Gemm <transB = 1> (f, v)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(build(TEXT, w=random(4, 3, 3, 3), b=random(4), v=random(5, 4)), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32))
    return path


def report_of(out: Path) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((out / "report.json").read_text())["targets"][0]  # type: ignore[type-arg]
    return found


def compile_it(
    model: Path, data: Path, out: Path, target: str = "litert", *more: str, passes: str = "fold"
) -> int:
    arguments = [str(model), "--passes", passes, "--eval", str(data), "--target", target, "--out", str(out)]
    return main([*arguments, "--no-latency", "--quiet", *more])


def test_it_writes_tries_and_measures(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    found = report_of(out)
    assert found["files"][0] == "model.tflite"
    assert all(name.startswith("model.litert.") for name in found["files"][1:])
    assert found["measured"] == "as built"
    assert found["details"]["verified"]["relative_error"] <= 1e-5
    assert found["details"]["open_batch"]
    assert found["details"]["outside_xnnpack"] == []
    assert found["quality"]["sqnr"] > 100
    assert found["size_bytes"] == (out / "model.tflite").stat().st_size


def calibration(folder: Path, *shape: int) -> str:
    """The path of samples that are no evaluation data."""
    path = folder / "calibration.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((8, *shape)).astype(np.float32))
    return str(path)


WIDE = "(float[N, 40] x) => (float[N, 60] y) { h = MatMul (x, a) r = Relu (h) y = Gemm <transB = 1> (r, b) }"


@pytest.mark.parametrize("passes, most", [("fold,codebook(bits=4)", 5), ("fold,codebook(bits=4),int8", 1.5)])
def test_it_says_what_written_out_codebooks_take(tmp_path: Path, passes: str, most: float) -> None:
    onnx.save(build(WIDE, a=random(40, 50), b=random(60, 50)), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32))
    out = tmp_path / "out"
    more = ("litert", "--calibration", calibration(tmp_path, 40))
    assert compile_it(tmp_path / "net.onnx", tmp_path / "data.npz", out, *more, passes=passes) == 0
    size = (out / "model.tflite").stat().st_size
    assert 5000 < size < 5000 * most + 4000
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    said = [one for one in warnings if "codebook" in one]
    assert len(said) == 1
    assert "2 codebook weights are written out value by value, for LiteRT decodes none" in said[0]
    shared = float(said[0].split("has them in ")[1].split(" MB")[0]) * 1e6
    assert shared == pytest.approx(5000 / 2 + 2 * 16 * 4, abs=200)
    assert f"the whole .tflite takes {size / 1e6:.3g} MB" in said[0]


def test_a_network_of_opset_22_is_measured_where_onnx_runtime_refuses_its_lowered_form(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DequantizeLinear -> Transpose -> Conv: a session by default does not load that from opset 21 on (seen in ONNX
    Runtime 1.32). Nobody but Lathe opens this form.
    """
    onnx.save(build(TEXT, 22, w=random(4, 3, 3, 3), b=random(4), v=random(5, 4)), tmp_path / "net.onnx")
    lowered: list[bytes] = []
    built = LiteRT.build

    def keep(self: LiteRT, model: Path, *others: object) -> object:
        lowered.append(model.read_bytes())
        return built(self, model, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(LiteRT, "build", keep)
    out = tmp_path / "out"
    more = ("litert(layout=nhwc, bundle=false)", "--calibration", calibration(tmp_path, 3, 8, 8))
    assert compile_it(tmp_path / "net.onnx", data, out, *more, passes="fold,int8") == 0
    found = report_of(out)
    assert found["details"]["int8_operators"] > 3
    assert found["quality"]["sqnr"] > 25
    opened = ort.session(onnx.load_model_from_string(lowered[0]))
    assert opened.get_inputs()[0].shape[-1] == 3


@pytest.mark.parametrize("layout", ["keep", "nhwc"])
def test_the_file_opens_as_a_session_for_batches(
    model: Path, data: Path, tmp_path: Path, layout: str
) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out, f"litert(layout={layout})") == 0
    session = open_file(out / "model.tflite")
    assert [value.name for value in session.get_outputs()] == ["y", "m"]
    assert session.get_inputs()[0].type == "tensor(float)"
    assert session.get_inputs()[0].shape[1:] == [3, 8, 8]
    feeds = {"x": np.load(data)["x"]}
    for got, wanted in zip(session.run(None, feeds), ort.session(model).run(None, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    raw = Opened((out / "model.tflite").read_bytes(), "model.tflite")
    assert raw.inputs[0].sizes == ((None, 8, 8, 3) if layout == "nhwc" else (None, 3, 8, 8))


def test_half_weights_are_half_the_file(model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    text = TEXT.replace("N, 5]", "N, 500]").replace("N, 4,", "N, 64,")
    onnx.save(build(text, w=random(64, 3, 3, 3), b=random(64), v=random(500, 64)), path)
    assert compile_it(path, data, tmp_path / "whole") == 0
    assert compile_it(path, data, tmp_path / "half", "litert(storage=float16)") == 0
    whole, half = ((tmp_path / name / "model.tflite").stat().st_size for name in ("whole", "half"))
    weights = 64 * 27 + 64 + 500 * 64
    assert abs(whole - half - 2 * weights) < 1500
    assert 1e-5 < report_of(tmp_path / "half")["details"]["verified"]["relative_error"] < 1e-2


@pytest.mark.parametrize("ends", ["float", "int8"])
def test_an_int8_network_is_equal_to_the_step(model: Path, data: Path, tmp_path: Path, ends: str) -> None:
    out, calibration = tmp_path / "out", tmp_path / "calibration.npz"
    np.savez(calibration, x=random(32, 3, 8, 8))
    more = ("--calibration", str(calibration))
    assert compile_it(model, data, out, f"litert(io={ends})", *more, passes="fold,int8") == 0
    found = report_of(out)
    steps = found["details"]["verified"]["steps"]
    assert set(steps) == {"XNNPACK", "reference kernels"}
    assert {table["differ"] for table in steps["XNNPACK"].values()} == {0}
    assert {"CONV_2D", "MEAN", "FULLY_CONNECTED"} <= set(steps["XNNPACK"])
    assert found["quality"]["sqnr"] > 20
    opened = Opened((out / "model.tflite").read_bytes(), "model.tflite")
    types = {port.type for port in (*opened.inputs, *opened.outputs)}
    assert types == {"FLOAT32" if ends == "float" else "INT8"}


def test_every_tensor_is_compared_on_request(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out, "litert(verify=tensors)") == 0
    tables = report_of(out)["details"]["verified"]["tensors"]
    assert tables["XNNPACK"]["CONV_2D"]["largest"] < 1e-5
    assert tables["XNNPACK"]["CONV_2D"]["node"] == "conv"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.onnx"
    text = "(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y, int64[4, M] d) { [odd] d = NonZero(x) [last] y = Mul(x, x) }"
    onnx.save(build(text), path)
    return path


def test_a_node_that_litert_lacks_fails_the_build_by_name(odd: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(odd, data, out) == 4
    error = report_of(out)["error"]
    assert "odd (NonZero)" in error
    assert "optimize check" in error
    assert not list(out.glob("model.tflite*"))


def test_check_lists_it_before_anything_is_written(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(odd), "--target", "litert"])
    assert "odd" in capsys.readouterr().out
    assert [path.name for path in odd.parent.iterdir()] == ["odd.onnx"]


def test_other_numbers_than_onnx_runtimes_fail_the_build(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Opened.run

    def other(self: Opened, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value * np.float32(1.001) for name, value in right(self, feeds).items()}

    monkeypatch.setattr(Opened, "run", other)
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 4
    error = report_of(out)["error"]
    assert "computes another output" in error
    assert "1.0e-03" in error
    assert not list(out.glob("model.tflite*"))


def test_a_gate_is_about_what_was_built(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out, "litert(storage=float16)", "--gate", "sqnr >= 90") in (0, 3)
    assert compile_it(model, data, out, "litert", "--gate", "sqnr >= 500", "--force") == 3
    assert not list(out.glob("model.tflite*"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"storage": "int4"}, "storage takes float32 or float16, not 'int4'"),
        ({"layout": "nchw"}, "layout takes keep or nhwc, not 'nchw'"),
        ({"io": "uint8"}, "io takes float or int8, not 'uint8'"),
        ({"batch": "two"}, "batch takes open or one, not 'two'"),
        ({"verify": "all"}, "verify takes outputs or tensors, not 'all'"),
        ({"shapes": {"x": "big"}}, "takes one shape, or two"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LiteRT.Config(**options)  # type: ignore[arg-type]


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert LiteRT().available() == package.MISSING
    assert "pip install 'onnx-lathe[litert]'" in package.MISSING


def test_a_written_file_is_run_by_name(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    assert main(["run", str(out / "model.tflite"), "--data", str(data), "--quiet"]) == 0
    assert "y" in capsys.readouterr().out


def test_reopening(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    found = reopen(out / "model.tflite", 1)
    assert found.library.startswith("LiteRT ")
    feeds = {"x": np.load(data)["x"]}
    np.testing.assert_allclose(
        found.session.run(["y"], feeds)[0], ort.session(model).run(["y"], feeds)[0], rtol=0, atol=1e-4
    )
    with pytest.raises(ModelError, match=r"input 'x' takes \[\?, 3, 8, 8\], not \[6, 3, 8, 9\]"):
        found.session.run(None, {"x": random(6, 3, 8, 9)})
    with pytest.raises(ModelError, match=r"input 'x' .* is not fed"):
        found.session.run(None, {})


def test_a_damaged_file_is_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    whole = (out / "model.tflite").read_bytes()
    for place, content in enumerate(
        (b"", b"no file at all", whole[: len(whole) // 3], whole[:8] + b"\xff" * 200)
    ):
        path = tmp_path / f"bad{place}.tflite"
        path.write_bytes(content)
        with pytest.raises((ModelError, TargetError)) as error:
            reopen(path, 1)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_sizes_that_no_machine_holds_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "huge.tflite"
    huge = Tensor("x", "FLOAT32", (1, 1 << 30, 1 << 30))
    path.write_bytes(pack(Contents([huge], [], [("x", 0)], [("x", 0)])))
    with pytest.raises(ModelError, match=r"huge.tflite: input 'x' .* does not fit into memory"):
        reopen(path, 1)


@pytest.mark.parametrize("batch, takes", [("open", False), ("one", True)])
def test_a_fixed_batch_is_taken_by_xnnpack(data: Path, tmp_path: Path, batch: str, takes: bool) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = "(float[N, 3, 8, 8] x) => (float[N, 4, 16, 16] y) { [up] y = ConvTranspose <strides = [2, 2]> (x, w) }"
    onnx.save(build(text, w=random(3, 4, 2, 2)), path)
    assert compile_it(path, data, out, f"litert(batch={batch})") == 0
    found = report_of(out)["details"]
    assert found["open_batch"] != takes
    assert any("TRANSPOSE_CONV" in one for one in found["outside_xnnpack"]) != takes


def test_a_branch_that_the_batch_decides_fixes_the_batch(data: Path, tmp_path: Path) -> None:
    """As exporters write a layer that drops a dimension of 1."""
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = """(float[N, 3, 8, 8] x) => (float y) {
        shape = Shape(x)  size = Gather(shape, zero)  is_one = Equal(size, one)  r = Relu(x)
        z = If (is_one) <
            then_branch = body () => (float[A, B, C, D] s) { s = Neg(r) },
            else_branch = other () => (float[E, F, G, H] t) { t = Exp(r) }
        >
        y = ReduceSum <keepdims = 0> (z) }"""
    onnx.save(build(text, zero=np.array(0), one=np.array(1)), path)
    told = "target litert: the batch is fixed at 1: it decides the branch on 'is_one'"
    for options, warned in (("", True), ("(batch=one)", False)):
        assert compile_it(path, data, out, f"litert{options}", "--force", passes="fold") == 0
        warnings = json.loads((out / "report.json").read_text())["warnings"]
        assert (told in warnings) == warned
        assert not report_of(out)["details"]["open_batch"]
    (found,) = [refused for one in onnx_lathe.check(path, "litert") for refused in one.refused]
    assert found[2].endswith("which of its branches runs depends on the batch, and batch=one fixes that")


def test_stored_probabilities_have_the_floor_of_probabilities() -> None:
    """A detector that sees nothing says 1e-3 everywhere: the size of that tells nothing."""
    text = "(float[1, 4] x) => (float[1, 4] y) { s = Sigmoid (x) q = QuantizeLinear (s, scale, zero) y = DequantizeLinear (q, scale, zero) }"
    model = build(text, scale=np.array(1 / 256, np.float32), zero=np.array(-128, np.int8))
    assert floors(model) == {"y": 1e-2}


def test_samples_of_a_fixed_batch_run_one_after_another(data: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    onnx.save(build(TEXT.replace("N,", "1,"), w=random(4, 3, 3, 3), b=random(4), v=random(5, 4)), path)
    assert compile_it(path, data, out) == 0
    session = open_file(out / "model.tflite")
    assert session.run(["y"], {"x": random(4, 3, 8, 8)})[0].shape == (4, 5)


@pytest.mark.parametrize("options", ["batch=one", "shapes={x: 4x6}"])
def test_a_file_of_another_batch_than_the_data_runs_it_call_by_call(options: str, tmp_path: Path) -> None:
    """Of 10 samples, the last call of four repeats one; and an output that is a number has no samples to cut."""
    text = """(float[N, 6] x) => (float[N, 3] y, float s) {
        y = MatMul (x, w)  s = ReduceMax <keepdims = 0> (w) }"""
    path, data = tmp_path / "net.onnx", tmp_path / "data.npz"
    onnx.save(build(text, w=random(6, 3)), path)
    feeds = {"x": random(10, 6)}
    np.savez(data, **feeds)  # type: ignore[arg-type]
    assert compile_it(path, data, tmp_path / "out", f"litert({options})") == 0
    assert report_of(tmp_path / "out")["measured"] == "as built"
    session = open_file(tmp_path / "out" / "model.tflite")
    for got, wanted in zip(session.run(None, feeds), ort.session(path).run(None, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    file = str(tmp_path / "out" / "model.tflite")
    assert main(["run", file, "--data", str(data), "--quiet"]) == 0
    assert main(["gate", str(path), file, "--data", str(data), "--gate", "sqnr >= 60", "--quiet"]) == 0


def test_ends_that_stay_float_in_spite_of_io_are_told(model: Path, tmp_path: Path) -> None:
    assert main(["build", str(model), "--target", "litert(io=int8)", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert any("io=int8 leaves x, y" in one for one in told)


def test_sizes_are_the_models_where_the_file_has_channels_last(tmp_path: Path) -> None:
    """Those that the option gives, those of the data, and those that a refusal names."""
    path, data = tmp_path / "net.onnx", tmp_path / "data.npz"
    text = TEXT.replace("N, 3, 8, 8] x", "N, 3, H, W] x").replace("N, 4, 8, 8", "N, 4, H, W")
    onnx.save(build(text, w=random(4, 3, 3, 3), b=random(4), v=random(5, 4)), path)
    np.savez(data, x=random(6, 3, 8, 10))
    given = {"given": "litert(layout=nhwc, shapes={x: 1x3x8x10})", "data": "litert(layout=nhwc)"}
    sizes = {"given": (None, 8, 10, 3), "data": (None, None, None, 3)}
    for name, target in given.items():
        assert compile_it(path, data, tmp_path / name, target) == 0
        assert open_file(tmp_path / name / "model.tflite").inputs[0].sizes == sizes[name]
