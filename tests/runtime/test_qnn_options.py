"""Target `qnn`, without its package: chips, options, sizes, and the names of nodes that a compiler leaves out."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.errors import LatheError, TargetError, UsageError
from onnx_lathe.optimizer.build import configured_targets
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.qnn import context, library, sizes
from onnx_lathe.runtime.targets.qnn.chips import CHIPS, chips_of
from onnx_lathe.runtime.targets.qnn.layers import RESULT
from onnx_lathe.runtime.targets.qnn.options import QnnConfig
from tests.support import qnn
from tests.support.builders import build

TRACE = Path(context.TRACE_FOLDER) / context.TRACE


def test_chips_are_told_apart() -> None:
    assert len({chip.soc_model for chip in CHIPS.values()}) == len(CHIPS)
    assert all(chip.sources and chip.htp_arch in (68, 69, 73, 75, 79, 81) for chip in CHIPS.values())
    assert [chip.soc_model for chip in chips_of("sm8650 + SM8750")] == [57, 69]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"soc": "SM8651"}, "there is no chip 'SM8651'; did you mean SM8650?; known are SM8850, "),
        ({"soc": "57"}, "there is no chip '57'; known are"),
        ({"soc": ""}, "there is no chip ''"),
        ({"soc": "SM8650+sm8650"}, "names a chip twice"),
        ({"vtcm_mb": 0}, "option vtcm_mb must be at least 1"),
        ({"soc": "SM8350", "vtcm_mb": 8}, "SM8350 has 4 MiB, not 8"),
        ({"soc": "SM8650+SM8350", "vtcm_mb": 5}, "SM8350 has 4 MiB, not 5"),
        ({"optimization": 9}, "option optimization must be 1 to 3, not 9"),
        ({"time_limit": 0.0}, "option time_limit must be positive"),
        ({"shapes": {"x": "1x3x16x16:8x3x16x16"}}, "option shapes, 'x': takes one shape"),
        ({"shapes": {"x": "1x0"}}, "option shapes, 'x': takes one shape"),
        ({"preprocess": "mean"}, "mean"),
    ],
)
def test_what_the_library_would_take_in_silence_is_refused(given: dict, said: str) -> None:
    with pytest.raises(LatheError) as raised:
        QnnConfig(**given)
    assert said in str(raised.value)


@pytest.mark.parametrize("name", ["performance", "htp_arch", "batch", "activation_bits"])
def test_options_of_others_are_pointed_elsewhere(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        configured_targets([Call("qnn", {name: 1})])


def test_options_become_the_librarys() -> None:
    found = library.provider_options(chips_of("SM8650+SM8750"), vtcm_mb=4, optimization=3)
    assert (found["soc_model"], found["htp_arch"], found["vtcm_mb"]) == ("57,69", "75,79", "4")
    assert found["htp_graph_finalization_optimization_mode"] == "3"
    assert "vtcm_mb" not in library.provider_options(chips_of("SM8650"))


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "PACKAGE", "no_such_package")
    target = find("qnn")()
    said = str(target.available())
    assert "pip install 'onnx-lathe[qnn]'" in said
    assert "AI Stack License" in said
    assert not target.runs_here(target.Config())
    model = tmp_path / "m.onnx"
    onnx.save(qnn.residual(), model)
    with pytest.raises(TargetError, match="not installed"):
        target.build(model, tmp_path, target.Config(), lambda text: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]
    assert target.refusals(qnn.residual(), target.Config()) == []


def test_a_batch_is_one_sample_and_other_sizes_are_the_datas() -> None:
    model = qnn.residual()
    assert sizes.sizes(model, {}) == {"x": (1, 3, 16, 16)}
    assert sizes.sizes(model, {"x": (4, 3, 16, 16)}) == {"x": (4, 3, 16, 16)}
    target, options = find("qnn")(), QnnConfig()
    fitted, notes = target.fitted(model, options, {"x": (8, 3, 16, 16)})
    assert (fitted.shapes, notes) == ({"x": "1x3x16x16"}, [])
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = f"size{dim.dim_value}"
    fitted, notes = target.fitted(model, options, {"x": (8, 3, 20, 24)})
    assert fitted.shapes == {"x": "1x3x20x24"}
    assert notes == ["compiled for x 1x3x20x24 alone, as the data has it: a chip's program has one size"]
    ((name, _, reason),) = target.refusals(model, options)
    assert name == "x"
    assert reason.endswith("such as shapes={x: 1x3x224x224}")
    with pytest.raises(
        UsageError, match=r"input 'x' has sizes that are not fixed.*give data, or qnn\(shapes="
    ):
        sizes.sizes(model, {})


def test_sizes_of_one_name_are_one_size() -> None:
    """What is said of one input holds for others that the model gives the same name."""
    model = build("(float[N, 3, L] a, float[N, L] b, float[N, K] c) => (float y) { y = Sum(a, b, c) }")
    given = {"a": (4, 3, 8)}
    assert sizes.undecided(model, given) == ["c"]
    given["c"] = (4, 5)
    assert sizes.sizes(model, given) == {"a": (4, 3, 8), "b": (4, 8), "c": (4, 5)}
    assert sizes.of_data(model, {"a": (4, 3, 8)}, {"b": (9, 7), "c": (9, 5)}, False) == {"c": (4, 5)}


def test_sizes_that_do_not_fit_are_refused() -> None:
    target = find("qnn")()
    for shapes, said in (
        ({"z": "1x3x16x16"}, "the model has no input 'z'"),
        ({"x": "1x4x16x16"}, r"1x4x16x16 does not fit \[\?, 3, 16, 16\]"),
    ):
        with pytest.raises(UsageError, match=said):
            target.accepts(qnn.residual(), QnnConfig(shapes=shapes))


def test_declared_sizes_leave_the_model_alone() -> None:
    model = qnn.residual()
    made = sizes.declared(model, {"x": (2, 3, 16, 16)})
    assert [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 16, 16]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_layers_between_pairs_are_on_integers() -> None:
    target = find("qnn")()
    assert [layer.int8 for layer in target.layers(qnn.residual())] == [True, True]
    assert [layer.int8 for layer in target.layers(qnn.residual(int8=False))] == [False, False]
    partly = target.layers(qnn.residual(sum_of_floats=True))
    assert [(layer.node, layer.int8) for layer in partly] == [("conv1", True), ("conv2", False)]
    assert target.check(qnn.residual(sum_of_floats=True), None) == [("conv2", RESULT)]


def _context(nodes: list[onnx.NodeProto], chips: str = "57") -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph(nodes, "g", [value], [value]))
    model.metadata_props.add(key=context.FOR_CHIPS, value=f"v2:6:2.51.0:5.51.0:75:{chips}:0:0")
    return model


def _program() -> onnx.NodeProto:
    return helper.make_node(
        "EPContext",
        ["x"],
        ["y"],
        "program",
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context="m_ctx_qnn.bin",
    )


def test_nodes_left_to_the_cpu_have_the_users_names(tmp_path: Path) -> None:
    """A decoder of a weight is its layer's, one that ONNX Runtime made for a bias too; a name that it added to is found
    by its beginning or by what the node writes.
    """
    left = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["conv2_weight_DQ_out"], "conv2_weight_DQ"),
        helper.make_node("DequantizeLinear", ["b", "s"], ["bias"], "conv1_bias_dq"),
        helper.make_node("Relu", ["a"], ["relu1_out"], "fused_1"),
        helper.make_node("Cast", ["a"], ["b"], "new", to=1),
    ]
    onnx.save(_context([*left, _program()]), tmp_path / context.CONTEXT)
    (tmp_path / TRACE).parent.mkdir()
    reason = "no `kernel`.DequantizeLinear node `conv2_weight_DQ` will not be assigned to QNN EP."
    unsupported = [{"node_name": "conv2_weight_DQ", "op_type": "DequantizeLinear", "reason": reason}]
    (tmp_path / TRACE).write_text(json.dumps({"unsupported_nodes": unsupported}))
    found = context.left_behind(tmp_path, qnn.residual())
    assert found == [
        context.Left("conv1", "Conv", ""),
        context.Left("relu1", "Relu", ""),
        context.Left("conv2", "Conv", "its weight or bias stays on the CPU: no 'kernel'"),
        context.Left("new", "Cast", ""),
    ]


def test_without_files_the_log_names_them(tmp_path: Path) -> None:
    log = "[E] Unsupported nodes in QNN EP: { name: sum, type: Add }, \n[E] Unsupported nodes in QNN EP: { name: conv1_token_1, type: Conv }{ name: mean, type: GlobalAveragePool }"
    found = context.left_behind(tmp_path, qnn.residual(int8=False), log)
    assert [(one.node, one.op) for one in found] == [("conv1", "Conv"), ("mean", "GlobalAveragePool")]
    assert context.left_behind(tmp_path, qnn.residual(int8=False)) == []


def test_a_context_file_says_what_belongs_to_it(tmp_path: Path) -> None:
    made = _context([_program()], "57,69")
    assert context.programs(made) == 1
    assert context.binaries(made) == ["m_ctx_qnn.bin"]
    assert context.models_of(made) == [57, 69]
    del made.metadata_props[:]
    assert context.models_of(made) == []
    onnx.save(made, tmp_path / "a.onnx")
    onnx.save(qnn.residual(), tmp_path / "b.onnx")
    target = find("qnn")()
    assert target.wrote(tmp_path / "a.onnx")
    assert not target.wrote(tmp_path / "b.onnx")
    assert not target.wrote(tmp_path / "none.onnx")
