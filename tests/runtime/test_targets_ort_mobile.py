"""The option `mobile` of the target ort: the file for phones, and the operators that a reduced build needs."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_lathe
from onnx_lathe.errors import LatheError, TargetError, UsageError
from onnx_lathe.optimizer import artifacts
from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.core.options import make_config
from onnx_lathe.runtime.running import guard, ort
from onnx_lathe.runtime.targets.core.base import Artifact
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.ort import mobile
from onnx_lathe.runtime.targets.ort import ort as target
from tests.support.builders import build, random
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, lowered, network, quantized

TARGET = find("ort")()
FILES = ["model.ort.onnx", "model.ort", "model.ort.required_operators_and_types.config"]

HEADS = """(float[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y, float[N, 5] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem, b8)  y = Relu (a)
    g = GlobalAveragePool (y)  f = Flatten (g)  z = Gemm <transB = 1> (f, head, b5) }"""


def built(folder: Path, model: onnx.ModelProto, **options: bool) -> Artifact:
    onnx.save(model, folder / "source.onnx")
    (folder / "out").mkdir()
    config = TARGET.Config(mobile=True, **options)
    return TARGET.build(folder / "source.onnx", folder / "out", config, lambda text: None)


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def operators(config: Path) -> dict[str, set[str]]:
    """Domain -> operators, types left out, as onnxruntime's own reader of these files finds them."""
    code = (
        "import json, sys; sys.modules['torch'] = None\n"
        "from onnxruntime.tools.reduced_build_config_parser import parse_config\n"
        "found, types = parse_config(sys.argv[1], True)\n"
        "assert types is not None\n"
        "print(json.dumps({domain: sorted(set().union(*of.values())) for domain, of in found.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(config)], check=True, capture_output=True)
    return {domain: set(names) for domain, names in json.loads(done.stdout).items()}


def int8(text: str) -> onnx.ModelProto:
    return lowered(quantized(network(text))[0])[0]


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE, HEADS])
@pytest.mark.parametrize("make", [network, int8])
def test_the_file_for_phones_computes_every_output_as_the_model_does(
    make: Callable[[str], onnx.ModelProto], text: str, tmp_path: Path
) -> None:
    artifact = built(tmp_path, make(text))
    assert [path.name for path in artifact.paths] == FILES
    assert sorted(FILES) == sorted(path.name for path in (tmp_path / "out").iterdir())
    expected, found = (ort.run(opened(path), {"x": IMAGES}) for path in artifact.paths[:2])
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)


def test_pairs_are_fused_into_integer_operators_and_the_details_count_them(tmp_path: Path) -> None:
    artifact = built(tmp_path, int8(RESIDUAL))
    found = operators(artifact.paths[2])
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= found["com.microsoft"]
    assert "DequantizeLinear" not in found["ai.onnx"]
    assert artifact.details == {
        "int8_layers": 4,
        "float_layers": 0,
        "mobile_bytes": artifact.paths[1].stat().st_size,
        "mobile_operators": sum(len(names) for names in found.values()),
    }
    assert artifact.size_bytes == artifact.paths[0].stat().st_size


def test_nothing_of_this_processor_is_in_it(tmp_path: Path) -> None:
    artifact = built(tmp_path, network(RESIDUAL), optimized=True)
    assert set(operators(artifact.paths[2])) == {"ai.onnx", "com.microsoft"}
    here = {node.domain for node in onnx.load(artifact.paths[3]).graph.node}
    # the other file shows that the order of channels would have been this processor's
    assert platform.machine().lower() not in ("x86_64", "amd64") or "com.microsoft.nchwc" in here


@pytest.mark.parametrize("make", [network, int8])
def test_both_files_are_those_of_onnxruntimes_converter(
    make: Callable[[str], onnx.ModelProto], tmp_path: Path
) -> None:
    code = (
        "import pathlib, sys; sys.modules['torch'] = None\n"
        "from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort\n"
        "convert_onnx_models_to_ort(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [OptimizationStyle.Fixed], "
        "target_platform='arm', enable_type_reduction=True)"
    )
    artifact = built(tmp_path, make(MOBILE))
    subprocess.run(
        [sys.executable, "-c", code, str(artifact.paths[0]), str(tmp_path / "theirs")],
        check=True,
        capture_output=True,
    )
    (config,) = (tmp_path / "theirs").glob("*.config")
    (model,) = (tmp_path / "theirs").glob("*.ort")
    assert lines(artifact.paths[2]) == lines(config)
    # the order of what is in it differs from run to run, of theirs too
    assert artifact.paths[1].stat().st_size == pytest.approx(model.stat().st_size, rel=0.01)


def lines(config: Path) -> list[str]:
    return [line for line in config.read_text().splitlines() if not line.startswith("#")]


def test_operators_in_bodies_are_listed(tmp_path: Path) -> None:
    text = """(bool c, float[N] x) => (float[N] y) { y = If (c) <
        then_branch = a () => (float[N] z) { z = Tanh (x) }, else_branch = b () => (float[N] z) { z = Neg (x) }> }"""
    artifact = built(tmp_path, build(text))
    assert operators(artifact.paths[2]) == {"ai.onnx": {"If", "Neg", "Tanh"}}


def int4_convolution() -> onnx.ModelProto:
    """ONNX Runtime 1.32 writes its INT4 weight into an `.ort` file, and then does not load that."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 4, 8, 8] x) => (float[N, 8, 6, 6] y) '
        "{ d = DequantizeLinear <axis = 0> (w, s)  y = Conv (x, d) }"
    )
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, (8, 4, 3, 3), bytes(range(144)), raw=True)
    model.graph.initializer.extend([weight, onnx.numpy_helper.from_array(np.ones(8, np.float32), "s")])
    return model


def optional() -> onnx.ModelProto:
    return build("(optional(float[N]) x) => (float[N] y) { y = OptionalGetElement (x) }", 18)


@pytest.mark.parametrize(
    "make, reason",
    [
        (int4_convolution, "model.ort: ONNX Runtime cannot load what it wrote: .*tensor 'w'"),
        (optional, "model.ort: ONNX Runtime cannot optimize the model: .*do not support type"),
    ],
)
def test_what_the_format_cannot_hold_is_one_line_and_leaves_no_file(
    make: Callable[[], onnx.ModelProto], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(
        TargetError, match=rf"^{reason}.*; leave mobile out: .*model\.ort\.onnx too$"
    ) as caught:
        built(tmp_path, make())
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_model_beyond_the_limit_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mobile, "LIMIT_BYTES", 100)
    monkeypatch.setattr(target, "verdicts", lambda model: pytest.fail("it was loaded first"))
    with pytest.raises(
        TargetError, match=r"the format holds 2\.1 GB, and the model has 0\.0 GB; .*mobile out"
    ):
        built(tmp_path, network(RESIDUAL))
    assert not list((tmp_path / "out").iterdir())


def test_a_crash_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "verdicts", lambda model: [])  # it would meet the crash before
    monkeypatch.setattr(guard, "WORKER", "tests.support.dying_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())
    with pytest.raises(
        TargetError, match=r"model\.ort: ONNX Runtime [\d.]+ crashes \(SIGSEGV\) .*mobile out"
    ):
        built(tmp_path, build("(float[N] x) => (float[N] y) { y = Round (x) }"))
    assert not list((tmp_path / "out").iterdir())


def test_tools_that_cannot_read_it_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mobile, "WORKER", "tests.support.no_such_worker")
    with pytest.raises(TargetError, match=r"cannot list the operators of model\.ort: .*no_such_worker"):
        built(tmp_path, network(RESIDUAL))
    assert not list((tmp_path / "out").iterdir())


def test_what_fails_later_takes_both_files_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: onnx.ModelProto, path: Path) -> None:
        assert {file.name for file in path.parent.iterdir()} == set(FILES[1:])
        raise LatheError(f"{path}: cannot be written: the disk is full")

    monkeypatch.setattr(target.model_file, "save", full)
    monkeypatch.setattr(target, "verdicts", lambda model: [])
    with pytest.raises(LatheError, match="the disk is full"):
        built(tmp_path, network(RESIDUAL))
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_is_larger_than_the_model_is_said(tmp_path: Path) -> None:
    model = build(
        "(float[N, 256] x) => (float[N, 256] y) { i = Cast <to = 6> (w)  d = Gather (c, i)  y = MatMul (x, d) }",
        w=np.arange(256 * 256).astype(np.uint8).reshape(256, 256),
        c=random(256),
    )
    onnx.save(model, tmp_path / "source.onnx")
    record = onnx_lathe.build(tmp_path / "source.onnx", "ort(mobile=true)", tmp_path / "out")
    notes = [note for note in record.warnings if "model.ort has" in note]
    assert len(notes) == 1
    assert notes[0].startswith("target ort: model.ort has 0.264 MB, model.ort.onnx 0.066")


def test_a_user_file_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.ort").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"model\.ort: is there already"):
        artifacts.check(tmp_path / "out", tmp_path / "source.onnx")


def test_another_value_is_refused() -> None:
    with pytest.raises(UsageError, match=r"mobile.*fixed"):
        make_config(TARGET.Config, {"mobile": "fixed"}, "target", "ort", "optimize targets")


def test_what_it_computes_is_compared_on_data(tmp_path: Path) -> None:
    artifact = built(tmp_path, network(HEADS))
    verified = functools.partial(TARGET.verify, artifact.paths[0], artifact, TARGET.Config(mobile=True))
    found = verified({"x": IMAGES}, lambda text: None, network(HEADS))["mobile_error"]
    assert 0 <= found < 1e-5
    other = network(HEADS)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(random(8, 3, 3, 3), "stem"))
    onnx.save(other, artifact.paths[0])
    with pytest.raises(TargetError, match=r"model\.ort: its output 'y' is off by .*; leave mobile out"):
        verified({"x": IMAGES}, lambda text: None, other)
    assert TARGET.verify(tmp_path, artifact, TARGET.Config(), {}, lambda text: None, onnx.ModelProto()) == {}


@pytest.mark.parametrize(
    "expected, found, error",
    [
        ([3.0, 4.0], [3.0, 4.0], 0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([np.nan, np.inf, 1.0], [np.nan, np.inf, 1.0], 0),
        ([0.0, 1.0], [np.nan, 1.0], np.inf),
        ([0.0, 0.0], [0.0, 1.0], np.inf),
        ([1.0], None, np.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
    ],
)
def test_errors_are_relative(expected: list[float], found: list[float] | None, error: float) -> None:
    other = None if found is None else np.array(found)
    assert mobile._relative(np.array(expected), other) == pytest.approx(error)


def test_a_model_that_does_not_repeat_itself_is_not_compared(tmp_path: Path) -> None:
    text = "(float[3, 4] x) => (float[3, 4] y) { r = RandomNormal <shape = [3, 4]> ()  y = Add (x, r) }"
    artifact = built(tmp_path, build(text))
    feeds = {"x": random(3, 4)}
    config = TARGET.Config(mobile=True)
    assert TARGET.verify(tmp_path, artifact, config, feeds, lambda text: None, onnx.ModelProto()) == {
        "mobile_error": None
    }


@pytest.mark.slow
def test_the_command_writes_and_reports_both(lenet5: Path, small_mnist: Path, tmp_path: Path) -> None:
    data = ["--train", f"{small_mnist}:train", "--eval", f"{small_mnist}:test", "--preprocess", "scale=1/255"]
    request = ["--passes", "fold,int8", "--target", "ort(mobile=true)", "--no-latency", "--quiet"]
    out = tmp_path / "out"
    assert main([str(lenet5), *request, *data, "--out", str(out)]) == 0
    (found,) = json.loads((out / "report.json").read_text())["targets"]
    assert found["files"] == FILES
    assert found["details"]["mobile_bytes"] == (out / "model.ort").stat().st_size
    assert found["details"]["mobile_error"] < 1e-5
    assert found["details"]["mobile_operators"] == sum(map(len, operators(out / FILES[2]).values()))
    images = random(20, 1, 28, 28)
    expected, values = (ort.run(opened(out / name), {"image": images})["logits"] for name in FILES[:2])
    np.testing.assert_array_equal(values, expected)
