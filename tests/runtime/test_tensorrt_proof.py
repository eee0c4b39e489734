"""Promise set against proof, from descriptions alone: shares, what fell back, and what is not known."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_lathe.runtime.targets.tensorrt.engine_layers import from_log
from onnx_lathe.runtime.targets.tensorrt.promise import Promise, is_quantized, promises
from onnx_lathe.runtime.targets.tensorrt.proof import (
    MIXED,
    NO_REASON,
    UNNAMED,
    UNREADABLE,
    prove,
    weight_facts,
)
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRT
from tests.support import quantized
from tests.support.engine_descriptions import ELEVEN, NAMES_ONLY, RTX_LOG, TEN, line
from tests.support.tensorrt_bindings import put_stand_in

CONV1, CONV2, FC = 8 * 9 * 28 * 28, 8 * 8 * 9 * 14 * 14, 10 * 392
"""MACs of quantized.lenet, of one image."""


def promised(
    name: str, int8: bool = True, macs: int | None = 100, op: str = "Conv", reason: str = ""
) -> Promise:
    return Promise(name, op, name, int8, reason, macs)


def test_what_lenet_promises() -> None:
    model = quantized.lenet(codebook=False)
    found = promises(model, {"image": (1, 1, 28, 28)})
    assert [(one.name, one.op, one.int8, one.macs) for one in found] == [
        ("conv1", "Conv", True, CONV1),
        ("conv2", "Conv", True, CONV2),
        ("fc", "Gemm", True, FC),
    ]
    assert is_quantized(model)
    assert not is_quantized(quantized.lenet(codebook=False, int8=False))


def test_macs_are_those_of_the_tuned_size() -> None:
    found = promises(quantized.lenet(codebook=False), {"image": (8, 1, 28, 28)})
    assert [one.macs for one in found] == [8 * CONV1, 8 * CONV2, 8 * FC]


def test_a_node_without_a_name_is_known_by_its_output() -> None:
    model = quantized.lenet(codebook=False)
    for node in model.graph.node:
        node.name = ""
    found = promises(model, {"image": (1, 1, 28, 28)})
    assert [one.known_as for one in found] == ["node_of_c1", "node_of_c2", "node_of_logits"]
    assert all(one.name.startswith(one.op) for one in found)


def test_shares_and_what_fell_back() -> None:
    table = [promised("conv1", macs=300), promised("conv2", macs=100), promised("fc", macs=40, op="Gemm")]
    proof = prove(table, from_log(RTX_LOG), "the log")
    found = proof.as_json()
    assert found["convolutions"] == {"macs": 400, "promised": 1.0, "int8": 0.75, "kept": 0.75}
    assert found["layers"] == {
        "macs": 440, "promised": 1.0, "int8": round(300 / 440, 6), "kept": round(300 / 440, 6),
    }  # fmt: skip
    assert [(each["node"], each["type"]) for each in found["each"]] == [
        ("conv1", "int8"),
        ("conv2", "float32"),
        ("fc", None),
    ]
    assert found["each"][1]["reason"] == NO_REASON
    assert proof.warnings()[0].startswith("conv2: promised in INT8, but the engine computes it in float32")
    assert proof.facts() == [
        "in INT8, by the log: 75.0 % of the convolutions' MACs (100.0 % promised), "
        "68.2 % of all layers' MACs (100.0 % promised)"
    ]


def test_a_layer_that_fell_back_as_the_check_said() -> None:
    rule = "its weight is not quantized per output channel: the layer runs in float"
    proof = prove([promised("conv2", int8=False, reason=rule)], from_log(RTX_LOG), "the log")
    assert [(layer.type, layer.reason) for layer in proof.layers] == [("float32", rule)]
    assert proof.warnings() == []
    assert proof.as_json()["convolutions"] == {"macs": 100, "promised": 0.0, "int8": 0.0, "kept": None}


def test_a_layer_in_int8_against_the_check() -> None:
    proof = prove([promised("conv1", int8=False, reason="some rule")], from_log(RTX_LOG), "the log")
    assert proof.warnings() == ["conv1: computed in INT8, though the check says otherwise: some rule"]
    assert proof.as_json()["convolutions"] == {"macs": 100, "promised": 0.0, "int8": 1.0, "kept": None}


def test_a_layer_that_no_kernel_names() -> None:
    proof = prove([promised("gone")], from_log(RTX_LOG), "the log")
    assert [(layer.type, layer.reason) for layer in proof.layers] == [(None, UNNAMED)]
    assert proof.as_json()["convolutions"]["kept"] == 0.0
    assert proof.warnings() == [f"gone: promised in INT8, which the engine does not prove: {UNNAMED}"]


def test_a_kernel_is_asked_that_is_named_after_the_layer() -> None:
    text = "\n".join(
        [
            line("a_myl0_1", "correlation", ["Int8"], ["Int8"], "[ONNX Layer: a][ONNX Layer: b]"),
            line("b_myl0_2", "correlation", ["Float"], ["Float"], "[ONNX Layer: b][ONNX Layer: a]"),
        ]
    )
    proof = prove([promised("a"), promised("b")], from_log(text), "the log")
    assert [layer.type for layer in proof.layers] == ["int8", "float32"]


def test_kernels_of_several_types_prove_nothing() -> None:
    text = "\n".join(
        line(f"part{place}_myl0_1", "correlation", [kind], [kind], "[ONNX Layer: a]")
        for place, kind in enumerate(("Int8", "Float"))
    )
    proof = prove([promised("a")], from_log(text), "the log")
    assert [(layer.type, layer.reason) for layer in proof.layers] == [(None, MIXED)]


def test_macs_that_are_not_known_give_no_share() -> None:
    proof = prove(
        [promised("conv1", macs=None), promised("fc", macs=5, op="Gemm")], from_log(RTX_LOG), "the log"
    )
    table = proof.as_json()
    assert table["convolutions"] == {"macs": None, "promised": None, "int8": None, "kept": None}
    assert "MACs of conv1 are not known" in table["note"]
    assert table["each"][0]["type"] == "int8"
    assert proof.facts() == []


def test_nothing_readable_is_said_and_not_guessed() -> None:
    table = prove([promised("conv1")], [], "the log").as_json()
    assert (table["source"], table["note"]) == (None, UNREADABLE)
    assert table["convolutions"] == {"macs": 100, "promised": 1.0, "int8": None, "kept": None}
    assert table["each"][0]["type"] is None


def built(folder: Path, model=None) -> dict:
    if model is not None:
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    artifact = TensorRT().build(
        folder / "model.onnx", folder / "out", TensorRT.Config(batch=1), lambda text: None
    )
    assert (
        json.loads((folder / "out" / "model.tensorrt.engine.json").read_text())["int8"]
        == artifact.details["int8"]
    )
    return {"notes": artifact.notes, "facts": artifact.facts, **artifact.details}


LOGS = f"self.logger.log(Severity.VERBOSE, {RTX_LOG!r})"
WEIGHS = "self.logger.log(Severity.VERBOSE, 'Total Weights Memory: 12345 bytes')"


@pytest.mark.parametrize("version, text", [("10.3.0", TEN), ("11.4.0.106", ELEVEN)])
def test_tensorrt_is_asked_by_its_inspector(tmp_path, monkeypatch, version: str, text: str) -> None:
    folder = put_stand_in(
        tmp_path, monkeypatch, version, build=f"{LOGS}; {WEIGHS}", inspect=f"return Engine({text!r})"
    )
    found = built(folder)
    assert found["int8"]["source"] == "the engine inspector"
    assert [layer["type"] for layer in found["int8"]["each"]] == ["int8", "float16", "int8"]
    assert found["int8"]["convolutions"]["kept"] == pytest.approx(CONV1 / (CONV1 + CONV2), abs=1e-6)
    assert found["weights_bytes"] == 12345
    assert "weights in the engine: 12.3 kB" in found["facts"]
    assert found["notes"] == (
        "conv2: promised in INT8, but the engine computes it in float16: TensorRT gives no reason",
    )


@pytest.mark.parametrize(
    "inspect",
    ["return None", "import os; os.abort()", f"return Engine({NAMES_ONLY!r})"],
    ids=["none", "crash", "names"],
)
def test_where_the_inspector_says_nothing_the_log_is_read(tmp_path, monkeypatch, inspect: str) -> None:
    found = built(put_stand_in(tmp_path, monkeypatch, "10.3.0", build=LOGS, inspect=inspect))
    assert found["int8"]["source"] == "the builder's log"
    assert [layer["type"] for layer in found["int8"]["each"]] == ["int8", "float32", None]
    assert found["weights_bytes"] is None


def test_where_nothing_can_be_read_the_sidecar_says_so(tmp_path, monkeypatch) -> None:
    found = built(put_stand_in(tmp_path, monkeypatch, "12.0.0"))
    assert (found["int8"]["source"], found["int8"]["note"]) == (None, UNREADABLE)
    assert found["notes"] == (UNREADABLE,)
    assert found["facts"] == ()


def test_a_float_model_promises_nothing(tmp_path, monkeypatch) -> None:
    folder = put_stand_in(tmp_path, monkeypatch, "10.3.0")
    found = built(folder, quantized.lenet(codebook=False, int8=False))
    assert (found["int8"], found["notes"]) == (None, ())
    calls = json.loads((folder / "out" / "model.tensorrt.engine").read_bytes())
    assert not [call for call in calls if call[0] == "profiling_verbosity"]


def counted(rows: int) -> list[int | None]:
    """MACs of a product with 2 x 4 weights, where shape inference does not know that x has nine numbers that are not
    0; another node takes them for so many.
    """
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], "where"),
        helper.make_node("Cast", ["where"], ["found"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["found"], ["rows"], "rows"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "fc"),
        helper.make_node("Reshape", ["rows", "shape"], ["side"], "side"),
    ]
    constants = {"w": np.ones((2, 4), np.float32), "shape": np.array([rows, 2], np.int64)}
    model = quantized.model(nodes, {"x": [3, 3]}, {"y": [None, 4], "side": [rows, 2]}, constants)
    return [one.macs for one in promises(model, {})]


def test_what_shape_inference_does_not_tell_is_found_by_running() -> None:
    assert counted(rows=9) == [9 * 2 * 4]


def test_macs_of_a_model_that_does_not_run_are_not_known() -> None:
    assert counted(rows=5) == [None]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (4, "4 B"),
        (439, "439 B"),
        (5384, "5.38 kB"),
        (999_900, "1000 kB"),
        (1_420_000, "1.42 MB"),
        (1_234_000_000, "1230 MB"),
    ],
)
def test_a_size_is_said_in_a_unit_of_its_own(size: int, said: str) -> None:
    assert weight_facts({"weights_bytes": size}) == [f"weights in the engine: {said}"]
