"""Opening a user's model: what is done to it is said, compared with what was given, and kept out of results."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnx_lathe
from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.loading import modern
from onnx_lathe.passes.loading.old_operators import RULES
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random


def old_network() -> onnx.ModelProto:
    """Opset 9, IR version 3: a padded convolution, a bound, and classes."""
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 9]> g (float[N, 3, 8, 8] x) => (float[N, 8] y) '
        "{ p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x) c = Conv (p, w) d = Clip <min = 0.0, max = 6.0> (c) "
        "e = GlobalAveragePool (d) f = Flatten (e) y = Softmax (f) }"
    )
    tensor = onnx.numpy_helper.from_array(random(8, 3, 3, 3), "w")
    model.graph.initializer.append(tensor)
    model.graph.input.append(helper.make_tensor_value_info("w", tensor.data_type, tensor.dims))
    onnx.checker.check_model(model)
    return model


def optimize(*arguments: object) -> int:
    return main([*map(str, arguments), "--no-latency", "--quiet"])


def report(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "report.json").read_text())
    return found


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.run(ort.session(path), {"x": x})["y"]


def test_an_old_network_is_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "old.onnx", tmp_path / "out"
    onnx.save(old_network(), path)
    assert optimize(path, "--passes", "fold,prune(sparsity=0)", "--out", out) == 0
    note = "opset 9 converted to 17 (1 Clip, 1 Pad, 1 Softmax written anew)"
    model = report(out)["model"]
    assert isinstance(model, dict)
    assert (model["opset"], model["nodes"], model["changes"]) == (9, 6, [note])
    assert f"model  {note}" in capsys.readouterr().out
    made = onnx.load(out / "model.onnx")
    assert made.opset_import[0].version == 17
    assert [value.name for value in made.graph.input] == ["x"]
    x = random(2, 3, 8, 8)
    np.testing.assert_allclose(outputs(out / "model.onnx", x), outputs(path, x), rtol=1e-5, atol=1e-6)


def test_every_command_takes_an_old_network(tmp_path: Path) -> None:
    path = tmp_path / "old.onnx"
    onnx.save(old_network(), path)
    assert main(["inspect", str(path)]) == 0
    assert main(["gate", str(path), str(path), "--gate", "size ratio >= 1"]) == 0
    assert main(["check", str(path), "--target", "ort"]) == 0
    assert main(["build", str(path), "--target", "ort", "--out", str(tmp_path / "built"), "--quiet"]) == 0


def test_a_network_in_memory_stays_as_it_is() -> None:
    model = old_network()
    before = model.SerializeToString()
    said: list[str] = []
    after = onnx_lathe.rewrite(model, "fold", progress=said.append)
    assert model.SerializeToString() == before
    assert after.opset_import[0].version == 17
    assert any("opset 9 converted" in text for text in said)


def test_a_conversion_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(rewriter: object, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [helper.make_node("Relu", node.input, node.output)]

    monkeypatch.setattr(modern, "RULES", {**RULES, "Softmax": wrong})
    path = tmp_path / "old.onnx"
    onnx.save(old_network(), path)
    assert optimize(path, "--passes", "fold", "--out", tmp_path / "out") == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert "opset 9 converted to 17" in complaint
    assert "output 'y' differs" in complaint
    with pytest.raises(ModelError, match="output 'y' differs"):
        onnx_lathe.rewrite(old_network(), "fold")


def test_a_conversion_that_does_not_load_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(rewriter: object, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [helper.make_node("Reshape", [node.input[0], node.input[0]], node.output)]

    monkeypatch.setattr(modern, "RULES", {**RULES, "Softmax": wrong})
    with pytest.raises(ModelError, match=r"opset 9 converted to 17 .*: ONNX Runtime cannot load"):
        onnx_lathe.rewrite(old_network(), "fold")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([np.ones(4, np.float32)], ""),
        ([np.ones(4, np.float32) * np.float32(1.00001)], ""),
        ([np.ones(4)], "became float64"),
        ([np.ones(4, np.float32) * np.float32(1.01)], "by 0.01 of its largest value"),
        ([np.ones(3, np.float32)], "became float32 [3]"),
        ([np.array([1, 1, 1, np.nan], np.float32)], "it is finite elsewhere"),
        ([], "is missing"),
    ],
)
def test_differences_are_named(found: list[np.ndarray], reason: str) -> None:
    """Each value is a sequence of arrays, as ONNX Runtime gives it."""

    class Session:
        def __init__(self, value: object) -> None:
            self.value = value

        def get_outputs(self) -> list[onnx.ValueInfoProto]:
            return [onnx.ValueInfoProto(name="maps")]

        def run(self, names: object, feeds: object) -> list[object]:
            return [self.value]

    given = Session([np.ones(4, np.float32)])
    text = opening.first_difference(given, Session(found), {})
    assert (reason in text and "output 'maps[0]'" in text) if reason else text == ""


def test_layers_in_functions_are_counted_and_compressed(tmp_path: Path) -> None:
    block = helper.make_function(
        "net", "Block", ["a", "w"], ["o"],
        [helper.make_node("Conv", ["a", "w"], ["t"], pads=[1] * 4), helper.make_node("Relu", ["t"], ["o"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "net": 1]> g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) '
        "{ a = net.Block(x, w0) y = net.Block(a, w1) }"
    )
    model.functions.append(block)
    for name in ("w0", "w1"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(4, 4, 3, 3), name))
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    onnx.save(model, path)
    assert optimize(path, "--passes", "prune(sparsity=0.5)", "--gate", "sparsity >= 50%", "--out", out) == 0
    assert report(out)["model"]["changes"] == [  # type: ignore[index]
        "1 local function inlined where 2 nodes called it: net.Block"
    ]
    weights = [
        onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(out / "model.onnx").graph.initializer
    ]
    assert sum((weight == 0).sum() for weight in weights) == 144
    assert onnx_lathe.inspect(path)[1].macs == 2 * 144 * 64


def traced_network() -> onnx.ModelProto:
    model = build("(float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { y = Conv(x, w) }", w=random(8, 3, 3, 3))
    model.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.stack_trace", value='File "/home/me/net.py", line 3'
    )
    model.metadata_props.add(key="author", value="me")
    return model


@pytest.mark.parametrize("keeps", [False, True])
def test_traces_of_source_code_are_kept_when_asked(tmp_path: Path, keeps: bool) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(traced_network(), path)
    flag = ["--keep-metadata"] if keeps else []
    for name, passes in (("nothing", "fold"), ("pruned", "prune")):
        out = tmp_path / name
        assert optimize(path, "--passes", passes, "--out", out, *flag) == 0
        for file in (out / "model.onnx", *out.glob("steps/*.onnx")):
            assert (b"net.py" in file.read_bytes()) == keeps
            assert b"author" in file.read_bytes()
        assert bool(report(out)["model"]["changes"]) != keeps  # type: ignore[index]
    memory = onnx_lathe.rewrite(traced_network(), "prune", keep_metadata=keeps)
    assert (b"net.py" in memory.SerializeToString()) == keeps


def test_a_run_with_other_wishes_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    onnx.save(traced_network(), path)
    assert optimize(path, "--passes", "prune", "--out", out) == 0
    assert optimize(path, "--passes", "prune", "--out", out, "--resume", "--keep-metadata") == 2
    assert "the reading of the model changed" in capsys.readouterr().err


def test_optional_inputs_become_weights_when_asked(tmp_path: Path) -> None:
    model = build(
        "(float[N, 3, 8, 8] x, float[8, 3, 3, 3] w) => (float[N, 8, 6, 6] y) { y = Conv(x, w) }",
        w=random(8, 3, 3, 3),
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    for flag, inputs, zeros in (([], ["x", "w"], 0), (["--drop-optional-inputs"], ["x"], 108)):
        out = tmp_path / f"out{len(flag)}"
        assert optimize(path, "--passes", "prune(sparsity=0.5)", "--out", out, *flag) == 0
        made = onnx.load(out / "model.onnx")
        assert [value.name for value in made.graph.input] == inputs
        assert (onnx.numpy_helper.to_array(made.graph.initializer[0]) == 0).sum() == zeros
    assert "1 optional input is a weight now, which no caller can feed" in report(out)["model"]["changes"]  # type: ignore[index]


def test_a_node_without_a_kernel_for_its_types_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    text = "(double[1, 3, 8, 8] x) => (double[1, 4, 6, 6] y) { [c] y = Conv(x, w) }"
    onnx.save(build(text, w=random(4, 3, 3, 3).astype(np.float64)), path)
    assert optimize(path, "--passes", "fold", "--target", "onnx", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert (
        "with name 'c'; its CPU provider has no kernel of this node for these types: export the model in float32"
        in said
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize("role", ["input", "output"])
def test_a_port_without_a_shape_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    model = build("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    (port,) = getattr(model.graph, role)
    port.type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert optimize(path, "--passes", "fold", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert (
        f"model.onnx: its {role} '{port.name}' declares no shape, not even one of open sizes; save what"
        in said
    )
    assert said.count("\n") == 1


def test_a_rewritten_model_too_large_for_protobuf_runs_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "old.onnx", tmp_path / "out"
    onnx.save(old_network(), path)
    given: list[bytes | str] = []
    whole = ort.create

    def create(source: bytes | str, *rest: object) -> object:
        given.append(source)
        return whole(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ort, "create", create)
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 500)
    arguments = (path, "--passes", "fold,int8", "--calibration", f"{tmp_path / 'data.npz'}", "--out", out)
    np.savez(tmp_path / "data.npz", x=random(4, 3, 8, 8))
    assert optimize(*arguments) == 0
    assert (out / "model.onnx.data").exists()
    assert all(isinstance(source, str) for source in given)
    assert given[1] == given[2], "compared and then run from one file"
    temporary = [Path(str(source)) for source in given if "lathe-" in str(source)]
    assert temporary
    assert not any(file.exists() for file in temporary)
    monkeypatch.undo()
    x = random(2, 3, 8, 8)
    difference = np.abs(outputs(out / "model.onnx", x) - outputs(path, x)).max()
    assert difference < 0.02, "of a softmax, in 8 bits"


def test_a_file_with_unsorted_nodes_is_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)'
    model = onnx.parser.parse_model(f"{head} {{ [late] y = Relu (h) [early] h = MatMul (x, w) }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(4, 4), "w"))
    path, out = tmp_path / "unsorted.onnx", tmp_path / "out"
    onnx.save(model, path)
    assert optimize(path, "--passes", "prune(sparsity=0.5)", "--out", out) == 0
    assert "nodes sorted: late stood before a node that it reads" in capsys.readouterr().out
    onnx.checker.check_model(out / "model.onnx")
    onnx_lathe.optimize(model, "prune(sparsity=0)", out=tmp_path / "again")
    x = random(3, 4)
    np.testing.assert_array_equal(outputs(tmp_path / "again" / "model.onnx", x), outputs(path, x))


def test_a_circle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = '<ir_version: 10, opset_import: ["": 17]> g (float[2] x) => (float[2] y)'
    path = tmp_path / "circle.onnx"
    onnx.save(onnx.parser.parse_model(f"{head} {{ y = Add (x, z) z = Neg (y) }}"), path)
    assert optimize(path, "--passes", "prune", "--out", tmp_path / "out") == 2
    assert "circle.onnx: the ONNX checker refuses it: Nodes in a graph must be" in capsys.readouterr().err
