"""The last state of a recurrent layer in a branch, as TensorRT takes it."""

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.runtime.targets.core.registry import find
from tests.support.builders import build, random, run

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def branched(body: str, op: str = "LSTM", **more: np.ndarray) -> onnx.ModelProto:
    """If(c) the body, which gives `p` from x [3, 2, 5] and 4 hidden units; else zeros."""
    rows = GATES[op] * 4
    text = f"""(float[3, 2, 5] x, bool c) => (float[1, 2, 4] y) {{
        y = If (c) <
            then_branch = first () => (float[1, 2, 4] p) {{ {body} }},
            else_branch = second () => (float[1, 2, 4] q) {{ q = Identity(zeros) }}
        >
    }}"""
    weights = {"w": random(1, rows, 5), "r": random(1, rows, 4), "zeros": np.zeros((1, 2, 4), np.float32)}
    return build(text, **weights, **more)


def lowered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, PassReport]:
    after, report = apply_pass(configure(find_lowering("tensorrt"), {}), model, Context())
    onnx.checker.check_model(after, full_check=True)
    return after, report


def body_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    (choose,) = [node for node in model.graph.node if node.op_type == "If"]
    return list(choose.attribute[0].g.node)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("end", ["p = Relu(h)", "p = Identity(h)"], ids=["read", "given"])
def test_a_last_state_alone_is_read_from_the_steps(op: str, direction: str, end: str) -> None:
    body = f'_, h = {op} <hidden_size = 4, direction = "{direction}"> (x, w, r) {end}'
    model = branched(body.replace("_,", "unread,"), op)
    after, report = lowered(model)
    assert [node.op_type for node in body_of(after)][:2] == [op, "Gather"]
    assert [edit.what for edit in report.edits if "its last state" in edit.what]
    assert refused(model)
    assert not refused(after)
    for chosen in (True, False):
        feeds = {"x": random(3, 2, 5), "c": np.array(chosen)}
        assert np.allclose(run(model, feeds)["y"], run(after, feeds)["y"], rtol=0, atol=1e-6)


def refused(model: onnx.ModelProto) -> list[str]:
    target = find("tensorrt-rtx")()
    return [reason for _, _, reason in target.refusals(model, target.Config()) if "last state" in reason]


def test_a_body_may_give_the_state_itself() -> None:
    model = branched("unread, p = LSTM <hidden_size = 4> (x, w, r)")
    after, _ = lowered(model)
    feeds = {"x": random(3, 2, 5), "c": np.array(True)}
    assert np.allclose(run(model, feeds)["y"], run(after, feeds)["y"], rtol=0, atol=1e-6)
    assert not refused(after)


def test_a_state_beside_read_steps_stays() -> None:
    after, report = lowered(
        branched(
            "s, h = LSTM <hidden_size = 4> (x, w, r) m = ReduceMax <axes = [0], keepdims = 0> (s) p = Add(m, h)"
        )
    )
    assert "Gather" not in [node.op_type for node in body_of(after)]
    assert not refused(after)
    assert not [edit for edit in report.edits if "its last state" in edit.what]


def test_a_state_that_is_no_step_is_refused() -> None:
    """With lengths, steps behind a sample's end are 0."""
    body = "unread, h = LSTM <hidden_size = 4> (x, w, r, , lengths) p = Relu(h)"
    after, _ = lowered(branched(body, lengths=np.array([1, 3], np.int32)))
    (reason,) = refused(after)
    assert "make a constant of what decides the branch" in reason


def test_a_layer_without_outputs_asks_nothing_of_its_states() -> None:
    model = branched("unread, h = LSTM <hidden_size = 4> (x, w, r) p = Identity(zeros)")
    del body_of(model)[0].output[:]
    assert not refused(model)
