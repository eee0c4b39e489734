"""Models that are valid and odd, by the command: names that hold anything, one name for a batch and a height, inputs that
are constants. They build as others do, or one line says what stands in the way.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe import metadata
from onnx_lathe.engines import LONGEST_NAME
from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.tensorrt.refusals import unknown_operators
from tests.support import quantized
from tests.support.builders import build
from tests.support.quantized import lower, node

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
ODD = "a\n\t\"b'é\x1f]\x85, LayerType: "
"""White space, quotes, what is not ASCII, and marks of TensorRT's own log."""


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Tensors of the main graph under other names."""
    graph = model.graph
    for one in graph.node:
        for listed in (one.input, one.output):
            listed[:] = [names.get(name, name) for name in listed]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    return model


def spatial(size: int | None, names: list[str]) -> onnx.ModelProto:
    """x [n, 3, h, w] -> Conv of 3x3, whatever the size, or product with a matrix of `size` rows; `names`: of n, h, w."""
    weight = np.ones((2, 3, 3, 3) if size is None else (size, 2), np.float32)
    made = helper.make_node("Conv" if size is None else "MatMul", ["x", "w"], ["y"], "layer")
    batch, height, width = names
    inputs, outputs = {"x": [batch, 3, height, width]}, {"y": [batch, None, None, None]}
    return quantized.model([made], inputs, outputs, {"w": weight})


def refusals(path: Path, target: str, capfd: pytest.CaptureFixture[str], *further: str) -> str:
    """What `optimize check` says of nodes that the target refuses, as JSON; empty where there are none."""
    capfd.readouterr()
    code = main(["check", str(path), "--target", target, "--json", *further])
    (found,) = json.loads(capfd.readouterr().out)
    assert code == (4 if found["refused"] else 0)
    return json.dumps(found["refused"]) if found["refused"] else ""


def refused_line(capfd: pytest.CaptureFixture[str]) -> str:
    captured = capfd.readouterr()
    (line,) = [one for one in (captured.out + captured.err).splitlines() if "FAILED" in one]
    return line


@needs_rtx
def test_names_that_hold_anything(tmp_path: Path) -> None:
    model = renamed(quantized.lenet(codebook=False), {"image": ODD, "logits": f"{ODD}out", "r1": f"{ODD}r1"})
    node(model, "conv2").name = ODD
    node(model, "conv1").name = "conv\0one"
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n\n"
    onnx.save(model, tmp_path / "odd.onnx")
    out = tmp_path / "out"
    assert (
        main(
            [
                "build",
                str(tmp_path / "odd.onnx"),
                "--target",
                "tensorrt-rtx(speed=any)",
                "--out",
                str(out),
                "--quiet",
            ]
        )
        == 0
    )
    said = json.loads((out / "model.tensorrt-rtx.engine.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in (*said["inputs"], *said["outputs"])] == [ODD, f"{ODD}out"]
    assert said["int8"]["layers"]["kept"] == 1
    assert [layer["node"] for layer in said["int8"]["each"]] == ["conv_one", ODD, "fc"]


def test_names_that_tensorrt_does_not_carry_are_others_inside_the_model() -> None:
    long = "block/" * LONGEST_NAME
    odd = {"r1": "r\0", "p1": long, "image": "im\0age", "b1": f"{long}b1", "flat_shape": "flat\0"}
    model = renamed(quantized.lenet(codebook=False), odd)
    node(model, "conv2").name = f"{long}conv2"
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({odd["b1"]: "unstructured"}))
    before = model.SerializeToString()
    lowered, report = lower(model)
    names = {name for one in lowered.graph.node for name in (one.name, *one.output)}
    stored = {one.name for one in lowered.graph.initializer}
    assert {"r_", f"{long}conv2"[-64:], long[-64:]} < names
    assert {"flat_", f"{long}b1"[-64:]} < stored
    assert not any("\0" in name or len(name) > LONGEST_NAME for name in names | stored)
    assert lowered.graph.input[0].name == "im\0age"
    assert metadata.read_sparse(lowered.metadata_props).keys() == {f"{long}b1"[-64:]}
    assert model.SerializeToString() == before
    assert len(report.edits) == 5
    inputs = {"im\0age": quantized.IMAGES["image"]}
    quantized.assert_same(model, lowered, inputs)


@pytest.mark.parametrize("target", ["tensorrt-rtx", "jetson"])
@pytest.mark.parametrize(
    "names, said",
    [
        ({"x": "im\0age"}, ("input 'im", "NUL", "rename")),
        ({"y": "y" * 5000}, ("output 'yyy", "4096", "rename")),
    ],
    ids=["NUL", "long"],
)
def test_inputs_and_outputs_stay_as_callers_know_them(
    target: str,
    names: dict[str, str],
    said: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    path = tmp_path / "odd.onnx"
    onnx.save(renamed(quantized.model(relu, {"x": ["n", 3]}, {"y": ["n", 3]}, {}), names), path)
    arguments = ["build", str(path), "--target", target, "--out", str(tmp_path / "out"), "--quiet"]
    if target == "jetson" or importlib.util.find_spec("tensorrt_rtx"):
        assert main(arguments) == 4
        line = refused_line(capfd)
        assert all(words in line for words in said), line
    shown = refusals(path, target, capfd)
    assert all(words in shown for words in said), shown


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_an_operator_that_one_lacks_is_named_by_both_names_of_its_domain(domain: str) -> None:
    where = helper.make_node("NonZero", ["x"], ["y"], "where", domain=domain)
    graph = helper.make_graph([where], "net", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 17)])
    (found,) = unknown_operators(model, {"NonZero": "why"})
    assert (found.node, found.reason) == ("where", "why")


def test_a_loop_with_an_operator_that_rtx_has_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build("""(float[4] x) => (float[4] y) {
        y = Loop (trip, go, x) < body = step (int64 i, bool c, float[4] s) => (bool k, float[4] t) {
            k = Identity(c)
            n = NonZero(s)
            f = Cast <to = 1> (n)
            m = ReduceSum <keepdims = 0> (f)
            t = Add(s, m)
        } >
    }""", trip=np.array(3), go=np.array(True))  # fmt: skip
    path = tmp_path / "loop.onnx"
    onnx.save(model, path)
    shown = refusals(path, "tensorrt-rtx", capfd)
    assert "NonZero" in shown
    assert "TensorRT-RTX has no such operator" in shown
    assert refusals(path, "tensorrt", capfd) == ""
    if importlib.util.find_spec("tensorrt_rtx"):
        arguments = [
            "build",
            str(path),
            "--target",
            "tensorrt-rtx",
            "--out",
            str(tmp_path / "out"),
            "--quiet",
        ]
        assert main(arguments) == 4
        assert "operator NonZero is not supported; export the model without it" in refused_line(capfd)


@pytest.mark.parametrize("names", [["n", "n", "n"], ["n", "n", "w"], ["n", "h", "n"]])
def test_a_batch_and_a_height_of_one_name_have_sizes_of_their_own(names: list[str]) -> None:
    target = find("jetson")()
    model = spatial(None, names)
    config, notes = target.fitted(model, target.Config(), {})
    assert config.shapes == {"x": "Nx3x224x224"}
    assert "Nx3x224x224 (N: option batch), a size on which it runs" in notes[0]
    config, notes = target.fitted(model, target.Config(), {"x": (8, 3, 12, 14)})
    assert config.shapes == {"x": "Nx3x12x14"}
    lowered, report = lower(model, shapes={"x": "1x3x12x14:1x3x12x14:32x3x12x14"})
    shape = lowered.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param == "n" for dim in shape] == [False] * 4
    assert "no common name" in report.edits[0].what


def test_one_name_is_one_size_where_the_model_runs_so() -> None:
    target = find("tensorrt-rtx")()
    products = [helper.make_node("MatMul", ["a", "b"], ["y"], "product")]
    model = quantized.model(products, {"a": ["n", 3], "b": [3, "n"]}, {"y": ["n", "n"]}, {})
    assert target.fitted(model, target.Config(), {})[0].shapes == {}
    assert target.fitted(model, target.Config(), {"a": (8, 3), "b": (3, 8)})[0].shapes == {}


def test_a_bundle_of_a_model_that_runs_at_no_usual_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.onnx"
    onnx.save(spatial(8, ["n", "n", "n"]), path)
    arguments = ["build", str(path), "--target", "jetson", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 4
    line = refused_line(capfd)
    assert "does not run at the sizes that it is built for, input 'x' 1x3x1x1: give data" in line
    assert "shapes={x: MIN:OPT:MAX}" in line


def test_sizes_are_not_blamed_where_data_has_them(tmp_path: Path) -> None:
    """What stands in the way of data is said as it is: they could give no others."""
    target = find("jetson")()
    path = tmp_path / "odd.onnx"
    onnx.save(spatial(8, ["n", "n", "n"]), path)
    feeds = {"x": np.ones((2, 3, 5, 5), np.float32)}
    options, _ = target.fitted(onnx.load(path), target.Config(batch="2"), {"x": (2, 3, 5, 5)})
    (tmp_path / "out").mkdir()
    artifact = target.build(path, tmp_path / "out", options, lambda text: None)
    with pytest.raises(ModelError) as raised:
        target.verify(path, artifact, options, feeds, lambda text: None)
    assert "ONNX Runtime" in str(raised.value)
    assert "give data" not in str(raised.value)


def branch_on_rate() -> onnx.ModelProto:
    """If(rate = 16000) Relu(x) else NonZero(x)."""
    kind = TensorProto.FLOAT

    def body(nodes: list[onnx.NodeProto], result: str, shape: list[int | str]) -> onnx.GraphProto:
        return helper.make_graph(
            nodes, f"body_{result}", [], [helper.make_tensor_value_info(result, kind, shape)]
        )

    relu = body([helper.make_node("Relu", ["x"], ["a"], "relu")], "a", [2, 4])
    odd = [
        helper.make_node("NonZero", ["x"], ["n"], "where"),
        helper.make_node("Cast", ["n"], ["b"], "cast", to=1),
    ]
    nodes = [
        helper.make_node("Equal", ["rate", "high"], ["is_high"], "equal"),
        helper.make_node(
            "If", ["is_high"], ["y"], "choose", then_branch=relu, else_branch=body(odd, "b", [2, "k"])
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("x", kind, [2, 4]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", kind, [2, "m"])]
    high = numpy_helper.from_array(np.array(16000), "high")
    graph = helper.make_graph(nodes, "net", inputs, outputs, [high])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("rate, code", [("16000", 0), ("8000", 4)])
def test_a_check_of_a_fixed_input_judges_what_a_build_sees(
    rate: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No pass has run: the body that the constant chooses is all that a build meets."""
    path = tmp_path / "branch.onnx"
    onnx.save(branch_on_rate(), path)
    fixed = ["--fix-input", f"rate={rate}"]
    assert ("where" in refusals(path, "tensorrt-rtx", capfd, *fixed)) == bool(code)
    if importlib.util.find_spec("tensorrt_rtx"):
        given = [str(path), *fixed, "--target", "tensorrt-rtx"]
        assert main(["build", *given, "--out", str(tmp_path / "out"), "--quiet"]) == code


def test_a_branch_of_a_model_that_runs_at_no_size_that_is_made_up() -> None:
    model = branch_on_rate()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    chosen = helper.make_node("MatMul", ["x", "w"], ["wide"], "product")
    model.graph.node.insert(0, chosen)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((77, 2), np.float32), "w"))
    model.graph.output.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, [2, 2]))
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(np.array(16000), "rate"))
    target = find("tensorrt-rtx")()
    assert target.lowering_options(target.Config(), model, {})["branches"] == {"is_high": True}


def test_a_branch_may_follow_from_a_sparse_weight_and_a_function() -> None:
    model = build("""(float[2] x) => (float[2] y) {
        s = ReduceSum <keepdims = 0> (w) c = Greater(s, zero)
        y = If (c) < then_branch = a () => (float[2] p) { p = Relu(x) }, else_branch = b () => (float[2] q) { q = Abs(x) } >
    }""", w=np.array([0, 1, 0], np.float32), zero=np.array(0, np.float32))  # fmt: skip
    del model.graph.initializer[0]
    values = numpy_helper.from_array(np.array([1], np.float32), "w")
    places = numpy_helper.from_array(np.array([1]), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    mine = [helper.make_node("Greater", ["a", "b"], ["c"])]
    model.functions.append(
        helper.make_function("mine", "More", ["a", "b"], ["c"], mine, [helper.make_opsetid("", 17)])
    )
    model.graph.node[1].op_type, model.graph.node[1].domain = "More", "mine"
    model.opset_import.append(helper.make_opsetid("mine", 1))
    target = find("tensorrt")()
    assert target.lowering_options(target.Config(), model, {})["branches"] == {"c": True}


def test_a_branch_on_a_size_stays() -> None:
    """An engine may take several sizes; TensorRT decides such a branch itself."""
    model = build("""(float[n, 4] x) => (float[n, 4] y) {
        s = Shape(x) f = Gather(s, zero) c = Equal(f, one)
        y = If (c) < then_branch = a () => (float[n, 4] p) { p = Relu(x) }, else_branch = b () => (float[n, 4] q) { q = Abs(x) } >
    }""", zero=np.array(0), one=np.array(1))  # fmt: skip
    target = find("tensorrt")()
    assert target.lowering_options(target.Config(batch=1), model, {})["branches"] == {}
