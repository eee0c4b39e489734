"""Real builds with TensorRT-RTX, which needs no GPU: what is written, what is said when it fails, and that
nothing is left behind.
"""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.errors import LatheError, ModelError, TargetError, UsageError
from onnx_lathe.runtime.targets.tensorrt import process
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRTRTX
from tests.support import quantized

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
QUIET = lambda text: None  # noqa: E731
ENGINE, SIDECAR, LOG = (f"model.tensorrt-rtx.engine{suffix}" for suffix in ("", ".json", ".log"))


def build(model: onnx.ModelProto | bytes, folder: Path, progress=QUIET, **options):
    source = folder / "lowered.onnx"
    source.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return TensorRTRTX().build(source, out, TensorRTRTX.Config(**options), progress)


def left(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out").iterdir()}


def test_it_is_available() -> None:
    assert TensorRTRTX().available() is None
    assert TensorRTRTX.lowering == "tensorrt"


def test_an_engine_and_what_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    artifact = build(quantized.lenet(codebook=False), tmp_path, said.append, batch="1:8:16")
    engine, sidecar = tmp_path / "out" / ENGINE, tmp_path / "out" / SIDECAR
    assert artifact.paths == (engine, sidecar)
    assert left(tmp_path) == {ENGINE, SIDECAR}
    assert artifact.size_bytes == engine.stat().st_size > 1000
    found = json.loads(sidecar.read_text())
    assert found == {"engine": ENGINE} | artifact.details
    assert found["engine_sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert found["compute"] == ["sm86"]
    assert found["library"] == "tensorrt_rtx"
    assert found["version"].split(".")[0].isdigit()
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": [-1, 1, 28, 28]}]
    assert found["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [-1, 10]}]
    assert found["profiles"] == [
        {"image": {"min": [1, 1, 28, 28], "opt": [8, 1, 28, 28], "max": [16, 1, 28, 28]}}
    ]
    assert found["build_seconds"] > 0
    assert said


def test_several_profiles_in_one_engine(tmp_path: Path) -> None:
    """The builder's log names the shapes of each."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])]
    weight = np.random.default_rng(0).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    model = quantized.model(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 4, "h", "w"]}, {"w": weight})
    shapes = {"x": "Nx3x32x32|Nx3x32x32:Nx3x48x64:Nx3x64x64"}
    artifact = build(model, tmp_path, batch="1|2:4:8", shapes=shapes, log=True)
    assert artifact.details["profiles"] == [
        {"x": {"min": [1, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [1, 3, 32, 32]}},
        {"x": {"min": [2, 3, 32, 32], "opt": [4, 3, 48, 64], "max": [8, 3, 64, 64]}},
    ]
    said = artifact.paths[2].read_text(encoding="utf-8")
    shapes = re.findall(r"MinShape: \[(.*?)\], OptShape: \[(.*?)\], MaxShape: \[(.*?)\]", said)
    assert shapes == [("1,3,32,32",) * 3, ("2,3,32,32", "4,3,48,64", "8,3,64,64")]


def one_sample_alone() -> onnx.ModelProto:
    """As exporters write a squeeze of a recurrent network: ranks differ between the branches of an If."""
    shape = helper.make_tensor_value_info("squeezed", TensorProto.FLOAT, None)
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "first"], ["count"], "gather"),
        helper.make_node("Equal", ["count", "one"], ["is_one"], "equal"),
        helper.make_node(
            "If",
            ["is_one"],
            ["chosen"],
            "if",
            then_branch=helper.make_graph(
                [helper.make_node("Squeeze", ["x", "axis"], ["squeezed"])], "then", [], [shape]
            ),
            else_branch=helper.make_graph(
                [helper.make_node("Identity", ["x"], ["same"])], "else", [], [same]
            ),
        ),
        helper.make_node("Reshape", ["chosen", "flat"], ["y"], "reshape"),
    ]
    constants = {"first": np.array(0), "one": np.array(1), "axis": np.array([0]), "flat": np.array([-1])}
    return quantized.model(nodes, {"x": ["n", 4]}, {"y": [None]}, constants)


def test_where_the_usual_batch_is_refused_one_sample_builds_and_is_said(tmp_path: Path) -> None:
    artifact = build(one_sample_alone(), tmp_path)
    assert artifact.details["profiles"] == [{"x": {"min": [1, 4], "opt": [1, 4], "max": [1, 4]}}]
    (note,) = artifact.notes
    assert note.startswith("the engine takes one sample at a time, since a batch of 1:1:32 is refused: ")
    assert "Must have inputs with equal ranks" in note
    with pytest.raises(
        TargetError, match=r"TensorRT has to know the conditions of if when it builds: pass fold"
    ):
        build(one_sample_alone(), tmp_path, batch="1:1:32")
    with pytest.raises(TargetError, match="TensorRT-RTX did not build"):
        build(one_sample_alone(), tmp_path, time_limit=0.01)


def test_int8_makes_the_engine_smaller_and_builds_repeat(tmp_path: Path) -> None:
    """600 x 600 weights: 1.44 MB in float, 0.36 MB in INT8."""

    def wide(int8: bool) -> onnx.ModelProto:
        weight = np.random.default_rng(0).normal(0, 1, (600, 600)).astype(np.float32)
        if not int8:
            return quantized.model(
                [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")],
                {"x": ["n", 600]},
                {"y": ["n", 600]},
                {"w": weight},
            )
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
            helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], "w_dq", axis=1),
            helper.make_node("MatMul", ["d", "w"], ["y"], "fc"),
        ]
        constants = {
            "s": np.float32(0.1),
            "z": np.int8(0),
            "codes": (weight * 20).astype(np.int8),
            "scales": np.full(600, 0.05, np.float32),
        }
        return quantized.model(nodes, {"x": ["n", 600]}, {"y": ["n", 600]}, constants)

    floating, quarter = build(wide(False), tmp_path).size_bytes, build(wide(True), tmp_path)
    assert quarter.size_bytes < floating / 2  # not a quarter: every generated kernel adds its source
    assert build(wide(True), tmp_path).details["engine_sha256"] == quarter.details["engine_sha256"]


def test_several_gpus_in_one_engine(tmp_path: Path) -> None:
    one = build(quantized.lenet(codebook=False), tmp_path).size_bytes
    both = build(quantized.lenet(codebook=False), tmp_path, compute="SM86+sm89")
    assert both.details["compute"] == ["sm86", "sm89"]
    assert both.size_bytes > one


def test_options_reach_the_builder(tmp_path: Path) -> None:
    artifact = build(
        quantized.lenet(codebook=False), tmp_path, level=0, workspace_mb=64, log=True, time_limit=None
    )
    assert left(tmp_path) == {ENGINE, SIDECAR, LOG}
    assert artifact.paths[2].read_text(encoding="utf-8").count("\n") > 100


@pytest.mark.parametrize(
    "options, message",
    [
        ({"compute": "86"}, "option compute takes"),
        ({"compute": "sm86+sm86"}, "option compute takes different"),
        ({"batch": "8:1:1"}, "option batch "),
        ({"shapes": {"x": "?"}}, "option shapes, 'x'"),
        ({"level": 6}, "option level must be 0 to 5"),
        ({"workspace_mb": 0}, "option workspace_mb must be at least 1"),
        ({"workspace_mb": 1 << 44}, "option workspace_mb is in MiB, and must be at most 1048576"),
        ({"time_limit": 0.0}, "option time_limit must be positive"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRTRTX.Config(**options)


def test_a_gpu_that_the_version_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no ComputeCapability SM87; it has .*sm86"):
        build(quantized.lenet(codebook=False), tmp_path, compute="sm87")
    assert left(tmp_path) == set()


def test_every_unsupported_node_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], "first"),
        helper.make_node("Det", ["x"], ["b"], "second"),
        helper.make_node("Unique", ["a"], ["u"], "third"),
        helper.make_node("Add", ["b", "u"], ["y"], "fine"),
    ]
    model = quantized.model(nodes, {"x": [2, 3, 3]}, {"y": [None]}, {})
    with pytest.raises(TargetError) as caught:
        build(model, tmp_path)
    message = str(caught.value)
    assert (
        "lowered.onnx: first (Det), second (Det): operator Det is not supported; export the model without it; third (Unique): "
        "operator Unique is not supported" in message
    )
    assert "\n" not in message
    assert left(tmp_path) == set()


def test_an_operator_of_another_domain(tmp_path: Path) -> None:
    model = quantized.model([helper.make_node("Relu", ["x"], ["y"], "mine")], {"x": [2]}, {"y": [2]}, {})
    model.graph.node[0].op_type, model.graph.node[0].domain = "Special", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(TargetError, match=r"mine \(Special\): operator Special is not supported; export"):
        build(model, tmp_path)


def test_a_build_that_fails_says_why_without_noise(tmp_path: Path) -> None:
    """A product in float32, which TensorRT-RTX does not have for sm75."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    model = quantized.model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": np.ones((4, 4), np.float32)})
    with pytest.raises(
        TargetError, match=r"TensorRT-RTX did not build lowered\.onnx: .*product.* FP32 GEMM"
    ) as caught:
        build(model, tmp_path, compute="sm75")
    assert "catchCudaError" not in str(caught.value)
    assert left(tmp_path) == set()


def test_a_model_that_would_be_taken_wrongly_is_refused(tmp_path: Path) -> None:
    model = quantized.lenet(codebook=False)
    for tensor in model.graph.initializer:
        if tensor.name == "p1_zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.uint8), "p1_zero"))
    with pytest.raises(
        TargetError, match=r"TensorRT-RTX would not take lowered\.onnx: p1_Q, p1_DQ: it is UINT8"
    ):
        build(model, tmp_path)


def test_a_crash_of_the_builder_is_an_error_of_the_target(tmp_path: Path) -> None:
    """TensorRT-RTX crashes on a scale of run time. The check refuses it before; here the worker gets it all
    the same.
    """
    model = quantized.lenet(codebook=False)
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["image"], ["now"], "max", keepdims=0))
    for node in model.graph.node:
        if node.name in ("image_Q", "image_DQ"):
            node.input[1] = "now"
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    request = {
        "library": "tensorrt_rtx", "model": str(source), "engine": str(tmp_path / "engine"), "log": None, "flags": [], "level": None,
        "workspace_bytes": None, "portable": False, "compute": ["SM86"], "profiles": [{"image": [[1, 1, 28, 28]] * 3}],
    }  # fmt: skip
    with pytest.raises(TargetError, match=r"the builder ended with (signal SIG|exit code 0x)"):
        process.ask(request, tmp_path, QUIET)
    assert not (tmp_path / "engine").exists()


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lowered\.onnx"):
        build(b"hello world", tmp_path)
    with pytest.raises(LatheError, match="no such file"):
        TensorRTRTX().build(tmp_path / "absent.onnx", tmp_path, TensorRTRTX.Config(), QUIET)


def test_a_model_without_outputs(tmp_path: Path) -> None:
    model = quantized.model([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": [2]}, {"y": [2]}, {})
    del model.graph.output[:]
    with pytest.raises(ModelError, match=r"lowered\.onnx: has no output"):
        build(model, tmp_path)


def test_an_input_that_is_a_shape(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")]
    model = quantized.model(nodes, {"x": [2, 3], "shape": ([2], TensorProto.INT64)}, {"y": [None, None]}, {})
    with pytest.raises(TargetError, match=r"input 'shape': it decides the shape of a tensor \(reshape\)"):
        build(model, tmp_path)


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    source = tmp_path / "big.onnx"
    model = quantized.lenet(codebook=False, int8=False)
    onnx.save(model, source, save_as_external_data=True, location="big.onnx.data", size_threshold=100)
    assert TensorRTRTX().build(source, tmp_path, TensorRTRTX.Config(), QUIET).size_bytes > 18_000
    (tmp_path / "big.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"big\.onnx\.data: no such file"):
        TensorRTRTX().build(source, tmp_path, TensorRTRTX.Config(), QUIET)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(quantized.lenet(codebook=False), source)
    with pytest.raises(TargetError, match="absent: cannot be written"):
        TensorRTRTX().build(source, tmp_path / "absent", TensorRTRTX.Config(), QUIET)


def test_the_time_limit_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(
        TargetError, match=r"not built within the time limit of 0\.01 s; give more with time_limit"
    ):
        build(quantized.lenet(codebook=False), tmp_path, time_limit=0.01)
    assert left(tmp_path) == set()


def test_ctrl_c_ends_the_worker_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(KeyboardInterrupt):
        build(quantized.lenet(codebook=False), tmp_path, interrupt)
    assert [process.poll() is not None for process in started] == [True]
    assert left(tmp_path) == set()


def test_the_worker_imports_what_its_parent_imports(tmp_path: Path) -> None:
    """From a folder with modules of the same names, as a user's may have."""
    onnx.save(quantized.lenet(codebook=False), tmp_path / "model.onnx")
    for name in ("runtime", "lathe", "onnx", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    root = Path(__file__).resolve().parents[2]
    code = (
        f"import sys; sys.path = [{str(root)!r}] + [entry for entry in sys.path if entry]\n"
        "from pathlib import Path\n"
        "from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRTRTX\n"
        "TensorRTRTX().build(Path('model.onnx'), Path('.'), TensorRTRTX.Config(), print)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ENGINE).exists()
