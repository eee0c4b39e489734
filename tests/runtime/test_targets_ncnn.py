"""The target ncnn as a whole: what it writes, what it refuses, and that a wrong result is a failed build."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError, TargetError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ncnn import notes, process, verify
from onnx_lathe.runtime.targets.ncnn.dialect import Layer, Stored, Weight
from onnx_lathe.runtime.targets.ncnn.ncnn import Ncnn
from onnx_lathe.runtime.targets.ncnn.quantized import INT8_TERM, TERMS
from onnx_lathe.runtime.targets.ncnn.session import open_files
from onnx_lathe.runtime.targets.ncnn.sharing import repeated
from tests.support.builders import build, random
from tests.support.ncnn import converted, random_feeds

TEXT = """(float[N, 3, 8, 8] x) => (float[N, 5] y, float[N, 4, 8, 8] m) {
    [conv] m = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (m)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    [fc] y = Gemm <transB = 1> (f, v)
}"""
FILES = {"model.ncnn.param", "model.ncnn.bin", "model.ncnn.json"}


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


def compile_it(model: Path, data: Path, out: Path, target: str = "ncnn", *more: str) -> int:
    arguments = [str(model), "--passes", "fold", "--eval", str(data), "--target", target, "--out", str(out)]
    return main([*arguments, "--no-latency", "--quiet", *more])


def test_it_writes_tries_and_measures(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    assert {path.name for path in out.glob("model.ncnn.*")} >= FILES
    found = report_of(out)
    assert set(found["files"]) >= FILES
    assert found["measured"] == "as built"
    assert found["details"]["verified"]["relative_error"] <= 1e-5
    assert found["quality"]["sqnr"] > 100
    assert found["size_bytes"] == sum((out / f"model.ncnn.{end}").stat().st_size for end in ("param", "bin"))


def test_the_files_open_as_a_session_for_batches(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    session = open_files(out / "model.ncnn.param")
    feeds = {"x": np.load(data)["x"]}
    names = [value.name for value in session.get_outputs()]
    assert names == ["y", "m"]
    assert session.get_inputs()[0].type == "tensor(float)"
    for got, wanted in zip(session.run(None, feeds), ort.session(model).run(None, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_half_weights_are_half_the_file(model: Path, data: Path, tmp_path: Path) -> None:
    assert compile_it(model, data, tmp_path / "whole") == 0
    assert compile_it(model, data, tmp_path / "half", "ncnn(storage=float16)") == 0
    whole, half = ((tmp_path / name / "model.ncnn.bin").stat().st_size for name in ("whole", "half"))
    weights = 4 * 3 * 9 + 5 * 4
    assert whole - half == 2 * weights
    assert 1e-5 < report_of(tmp_path / "half")["details"]["verified"]["relative_error"] < 1e-2


def test_a_node_that_ncnn_lacks_fails_the_build_by_name(data: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = "(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { [odd] d = Det(x) [last] y = Add(x, d) }"
    text = text.replace("Add(x, d)", "Mul(x, x)").replace(
        "[odd] d = Det(x)", "[odd] d = NonZero(x) s = Shape(d)"
    )
    onnx.save(build(text.replace("float[N, 3, 8, 8] y", "float[N, 3, 8, 8] y, int64[4, M] d")), path)
    assert compile_it(path, data, out) == 4
    found = report_of(out)
    assert "odd" in found["error"]
    assert "NonZero" in found["error"]
    assert "optimize check" in found["error"]
    assert not list(out.glob("model.ncnn*"))


def test_other_numbers_than_onnx_runtimes_fail_the_build(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: object) -> tuple[dict[str, np.ndarray], str]:
        found, version = process.outputs_of(*arguments)  # type: ignore[arg-type]
        return {name: value * np.float32(1.001) for name, value in found.items()}, version

    monkeypatch.setattr(verify, "outputs_of", other)
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 4
    error = report_of(out)["error"]
    assert "computes another output" in error
    assert "1.0e-03" in error
    assert not list(out.glob("model.ncnn*"))


def test_a_gate_is_about_what_was_built(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out, "ncnn(storage=float16)", "--gate", "sqnr >= 90") == 3
    assert not list(out.glob("model.ncnn*"))
    gates = json.loads((out / "report.json").read_text())["gates"]
    assert {(gate["subject"], gate["passed"]) for gate in gates} == {("model", True), ("ncnn", False)}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"storage": "int4"}, "storage takes float32 or float16, not 'int4'"),
        ({"profile": "arm"}, "profile takes x86"),
        ({"shapes": {"x": "big"}}, "takes one shape, or two"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ncnn.Config(**options)  # type: ignore[arg-type]


def broken(tmp_path: Path, change: Callable[[Path, Path], None]) -> str:
    """What is said of files that were changed behind the writer's back."""
    model = build(TEXT, w=random(4, 3, 3, 3), b=random(4), v=random(5, 4))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    artifact = Ncnn().build(path, tmp_path, Ncnn.Config(), lambda text: None)
    param, weights = artifact.paths[:2]
    change(param, weights)
    written = converted(model)
    with pytest.raises((TargetError, ModelError)) as caught:
        process.outputs_of(
            param, weights, written.inputs, written.outputs, random_feeds(model, {"x": (1, 3, 8, 8)})
        )
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_layer_that_ncnn_does_not_know(tmp_path: Path) -> None:
    def change(param: Path, weights: Path) -> None:
        param.write_text(param.read_text().replace("Pooling ", "Poolin "))

    assert "does not load it" in broken(tmp_path, change)


def test_weights_that_end_early(tmp_path: Path) -> None:
    def change(param: Path, weights: Path) -> None:
        weights.write_bytes(weights.read_bytes()[:40])

    assert "does not load it" in broken(tmp_path, change)


def test_a_process_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "tests.support.dying_worker")
    said = broken(tmp_path, lambda param, weights: None)
    assert "ncnn ended with" in said


def test_a_model_of_several_samples_says_how_to_export_it(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "four.onnx"
    text = TEXT.replace("N, ", "4, ")
    onnx.save(build(text, w=random(4, 3, 3, 3), b=random(4), v=random(5, 4)), path)
    assert compile_it(path, data, tmp_path / "out") == 4
    error = report_of(tmp_path / "out")["error"]
    assert "the model takes 4 samples at once: export it with a batch of 1, or an open one" in error


def test_sizes_that_the_model_does_not_run_at_are_the_datas_then(tmp_path: Path) -> None:
    """64 is Lathe's own, 7 columns are what the matrix takes; a data's sample has them."""
    path = tmp_path / "net.onnx"
    onnx.save(build("(float[N, L] x) => (float[N, M] y) { y = MatMul (x, w) }", w=random(7, 3)), path)
    with pytest.raises(TargetError, match="Lathe's own sizes for what the model leaves open: give data"):
        Ncnn().refusals(onnx.load(path), Ncnn.Config())
    np.savez(tmp_path / "data.npz", x=random(4, 7))
    assert compile_it(path, tmp_path / "data.npz", tmp_path / "other") == 0
    notes = json.loads((tmp_path / "other" / "report.json").read_text())["warnings"]
    assert any("built for inputs of x 1x7, as the data has them" in note for note in notes)


def test_weights_alone_in_int8_are_compared_as_the_graph_says(tmp_path: Path) -> None:
    """ONNX Runtime's optimizers quantize what such a MatMul reads, too: its outputs are off by near 1 % then."""
    text = "(float[N, 64] x) => (float[N, 32] y) { h = MatMul (x, v)  r = Relu (h)  y = MatMul (r, w) }"
    onnx.save(build(text, v=random(64, 64), w=random(64, 32)), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=random(8, 64))
    arguments = [str(tmp_path / "net.onnx"), "--passes", "int8(activations=false)", "--target", "ncnn"]
    arguments += ["--eval", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-latency", "--quiet"]) == 0
    assert report_of(tmp_path / "out")["details"]["verified"]["relative_error"] < 1e-5


def test_weights_in_float16_may_move_what_they_move_in_onnx_runtime(tmp_path: Path) -> None:
    """A small difference of large numbers."""
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    first = random(8, 8)
    stored = {"w": first, "v": first + 1e-2 * random(8, 8)}
    onnx.save(
        build(
            "(float[N, 8] x) => (float[N, 8] y) { a = MatMul (x, w) b = MatMul (x, v) y = Sub (a, b) }",
            **stored,
        ),
        path,
    )
    np.savez(tmp_path / "data.npz", x=random(4, 8))
    assert compile_it(path, tmp_path / "data.npz", out, "ncnn(storage=float16)") == 0
    found = report_of(out)["details"]["verified"]
    assert found["allowed"] > verify.HALF


def test_activations_beyond_float16_are_named(data: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = """(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
        [wide] m = Conv (x, w)
        r = Relu (m)
        [narrow] y = Mul (r, s)
    }"""
    onnx.save(build(text, w=1e6 * random(4, 3, 3, 3), s=np.float32(1e-6)), path)
    assert compile_it(path, data, out) == 0
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert any("65504" in line and "wide" in line for line in warnings)
    assert "const bool half = false" in (out / "model.ncnn.example.cpp").read_text()
    assert report_of(out)["details"]["verified"]["fits_float16"] is False


@pytest.mark.parametrize("op, passes", [("Sigmoid", True), ("Relu", False)])
def test_probabilities_next_to_nothing_are_alike(
    op: str, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth of 1e-6 is no difference where 1 is "yes"; of other values it is one."""
    text = f"(float[1, 4] x) => (float[1, 4] y) {{ s = Add (x, b) y = {op} (s) }}"
    shift = np.float32(-14 if op == "Sigmoid" else 1e-6)
    path = tmp_path / "net.onnx"
    onnx.save(build(text, b=shift), path)
    target = Ncnn()
    artifact = target.build(path, tmp_path, Ncnn.Config(), lambda text: None)

    def other(*arguments: object) -> tuple[dict[str, np.ndarray], str]:
        found, version = process.outputs_of(*arguments)  # type: ignore[arg-type]
        return {name: value * np.float32(1.01) for name, value in found.items()}, version

    monkeypatch.setattr(verify, "outputs_of", other)
    feeds = {"x": np.zeros((1, 4), np.float32)}
    if passes:
        target.verify(path, artifact, Ncnn.Config(), feeds, lambda text: None, onnx.load(path))
    else:
        with pytest.raises(TargetError, match="computes another output"):
            target.verify(path, artifact, Ncnn.Config(), feeds, lambda text: None, onnx.load(path))


@pytest.mark.parametrize(
    "second, size, storage, said",
    [
        ("w", 256, "float32", "0.3 MB beside the model's 0.3 MB, most of it 'w', which 2 nodes read"),
        ("w", 256, "float16", "0.1 MB beside the model's 0.1 MB, most of it 'w', which 2 nodes read"),
        ("w", 192, "float16", None),
        ("w", 64, "float32", None),
        ("v", 256, "float32", None),
    ],
)
def test_weights_that_are_written_twice_are_said(
    second: str, size: int, storage: str, said: str | None, tmp_path: Path
) -> None:
    """By what the files hold of them: 131 kB in float16 at 256 x 256, 74 kB at 192 x 192."""
    path = tmp_path / "net.onnx"
    text = f"(float[N, {size}] x) => (float[N, {size}] y) {{ a = MatMul (x, w) r = Relu (a) y = MatMul (r, {second}) }}"
    onnx.save(build(text, **{name: random(size, size) for name in ("w", second)}), path)
    np.savez(tmp_path / "data.npz", x=random(4, size))
    target = f"ncnn(storage={storage})"
    assert compile_it(path, tmp_path / "data.npz", tmp_path / "out", target) == 0
    warnings = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    found = [line.split("its files hold ")[1] for line in warnings if "share no weights" in line]
    assert found == ([] if said is None else [said])
    if said is not None:
        written = (tmp_path / "out" / "model.ncnn.bin").stat().st_size
        assert f"{written / 2e6:.1f} MB" == said[:6]


def test_integers_that_are_written_twice_take_a_byte_each() -> None:
    text = """(float[1, 512] x) => (float[1, 512] y) {
        w = DequantizeLinear <axis = 0> (codes, scale) a = MatMul (x, w) r = Relu (a) y = MatMul (r, w)
    }"""
    model = build(text, codes=np.ones((512, 512), np.int8), scale=np.ones(512, np.float32))
    assert "hold 0.3 MB beside the model's 0.3 MB, most of it 'codes'" in repeated(model, half=False)


@pytest.mark.parametrize("is_input", [True, False])
def test_an_input_with_a_default_value_is_said_to_be_a_constant(is_input: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = build(
        f"(float[N, 4] x{', float gain' * is_input}) => (float[N, 4] y) {{ y = Mul (x, gain) }}",
        gain=np.float32(3),
    )
    onnx.save(model, path)
    np.savez(tmp_path / "data.npz", x=random(4, 4))
    assert compile_it(path, tmp_path / "data.npz", tmp_path / "out") == 0
    warnings = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert (
        any("gain: an input with a default value is written as a constant" in line for line in warnings)
        == is_input
    )


@pytest.mark.parametrize(
    "profile, passes, is_said",
    [
        ("x86", "fold,int8", True),
        ("x86", "fold,int8(layers={fc: false})", False),
        ("arm64-fp16", "fold,int8", False),
    ],
)
def test_matrices_that_int8_makes_slow_are_named(
    profile: str, passes: str, is_said: bool, model: Path, data: Path, tmp_path: Path
) -> None:
    target = f"ncnn(profile={profile})"
    np.savez(tmp_path / "calibration.npz", x=random(8, 3, 8, 8))
    more = ("--passes", passes, "--calibration", str(tmp_path / "calibration.npz"))
    assert compile_it(model, data, tmp_path / "out", target, *more) == 0
    warnings = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    said = [line for line in warnings if "1.2 to 1.9 times float's time on x86" in line]
    assert bool(said) == is_said
    assert all(
        "1 matrix product in INT8 (fc) takes" in line and "int8(layers={fc: false})" in line for line in said
    )


def test_matrices_beyond_the_cache_are_not_called_slow() -> None:
    for size, is_said in ((64, True), (notes.FITS, False)):
        weight = Weight(Stored(np.zeros(size, np.int8)), tagged=True)
        layer = Layer("InnerProduct", "fc", [], [], {INT8_TERM: TERMS["InnerProduct"]}, [weight])
        assert bool(notes.about_slow_matrices([layer], "x86")) == is_said


def test_it_is_timed_on_one_thread_in_turn_with_the_original_on_one(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On more, other work on the machine makes them wait for each other at every layer."""
    asked: list[tuple[str, int]] = []
    network, original = Ncnn.open, ort.as_opened

    def opened(self: Ncnn, artifact: object, options: object, threads: int = 1) -> object:
        asked.append(("ncnn", threads))
        return network(self, artifact, options, threads)  # type: ignore[arg-type]

    def plain(path: Path, threads: int = 0) -> object:
        asked.append(("original", threads))
        return original(path, threads)

    monkeypatch.setattr(Ncnn, "open", opened)
    monkeypatch.setattr(ort, "as_opened", plain)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    arguments = [str(model), "--passes", "fold", "--eval", str(data), "--target", "ncnn", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--no-html"]) == 0
    assert {threads for what, threads in asked if what == "ncnn"} == {1}
    assert asked[-1] == ("original", 1)
    assert report_of(tmp_path / "out")["quality"]["latency"] > 0
