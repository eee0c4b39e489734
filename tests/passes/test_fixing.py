"""Inputs that become constants: what is stored, and which values are refused."""

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.loading.fixing import described, fix_inputs
from onnx_lathe.passes.loading.preparing import Wishes, is_ready, prepare
from tests.support.builders import build, random, run

MODEL = """(float[N, 4] x, int64 sr, float[1] gain, uint8[2] pair, bool on, float16[N, K] mask, float[4] w) => (float[N, 4] y) {
    a = Mul(x, gain)  b = Mul(a, w)  c = Neg(b)  one = Cast <to = 1> (sr)  d = Add(c, one)
    y = Where(on, b, d)  unused = Cast <to = 1> (pair)  other = Cast <to = 1> (mask)
}"""


def model() -> onnx.ModelProto:
    """Six inputs to feed, and one with a default."""
    return build(MODEL, w=np.arange(4, dtype=np.float32))


def test_values_are_stored_as_the_model_declares_them() -> None:
    found = model()
    wanted = {"sr": 16000, "gain": 2, "pair": [3, 255], "on": False, "mask": [[1, 0.5]]}
    values = fix_inputs(found, wanted)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert [value.name for value in found.graph.input] == ["x", "w"]
    for name, dtype, shape in (
        ("sr", np.int64, ()),
        ("gain", np.float32, (1,)),
        ("pair", np.uint8, (2,)),
        ("on", np.bool_, ()),
        ("mask", np.float16, (1, 2)),
    ):
        assert (stored[name].dtype, stored[name].shape) == (dtype, shape)
        np.testing.assert_array_equal(stored[name], values[name])
    assert described(values)[:2] == ["input 'sr' is the constant 16000", "input 'gain' is the constant [2.0]"]
    onnx.checker.check_model(found)
    feeds = {"x": random(3, 4)}
    fed = {**feeds, **{name: values[name] for name in wanted}}
    np.testing.assert_array_equal(run(found, feeds)["y"], run(model(), fed)["y"])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"rate": 1}, "has no input 'rate' to make a constant of; its inputs are 'x', 'sr', 'gain', 'pair', 'on', 'mask'"),
        ({"gian": 1}, "did you mean 'gain'"),
        ({"w": [1, 2, 3, 4]}, "'w' is an optional input, whose default is an initializer; give --drop-optional-inputs"),
        ({"sr": 16000.0}, "input 'sr' is int64, one number: its value takes whole numbers, not 16000.0"),
        ({"sr": True}, "its value takes whole numbers, not True"),
        ({"sr": 2**63}, "its value takes -9223372036854775808 to 9223372036854775807, not 9223372036854775808"),
        ({"sr": [16000]}, "a list of shape [1] does not fit; give one number, without brackets"),
        ({"pair": 3}, "input 'pair' is uint8 [2]: one number does not fit; give a list of shape [2]"),
        ({"pair": [3, 256]}, "its value takes 0 to 255, not 256"),
        ({"pair": [1, 2, 3]}, "a list of shape [3] does not fit"),
        ({"on": 1}, "its value takes true or false, not 1"),
        ({"gain": "2"}, "its value takes numbers, not '2'"),
        ({"mask": [[1, 2], [3]]}, "input 'mask' is float16 [N, K]: the rows of its value differ in length"),
        ({"mask": [[1e6]]}, "its value is beyond what that type holds: 1000000.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(wanted: dict[str, Any], said: str) -> None:
    found = model()
    before = found.SerializeToString()
    with pytest.raises(ModelError) as error:
        fix_inputs(found, {"gain": 1, **wanted})
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert found.SerializeToString() == before


def test_an_initializer_of_an_old_file_is_none_to_fix() -> None:
    found = build("(float[N, 4] x, float[4] w) => (float[N, 4] y) { y = Mul(x, w) }", w=random(4))
    found.ir_version = 3
    with pytest.raises(ModelError, match="'w' is an initializer already; leave it out"):
        fix_inputs(found, {"w": [1, 2, 3, 4]})


def test_one_input_has_to_be_left() -> None:
    found = build("(float[2] x, float s) => (float[2] y) { y = Mul(x, s) }")
    with pytest.raises(ModelError, match="all its inputs would be constants"):
        fix_inputs(found, {"x": [1, 2], "s": 3})


def test_texts_and_sequences_are_no_constants() -> None:
    found = build("(string s, seq(float[2]) q, float[2] x) => (float[2] y) { y = Neg(x) }")
    with pytest.raises(ModelError, match="input 's' is string, one number, which cannot be a constant here"):
        fix_inputs(found, {"s": "a"})
    with pytest.raises(ModelError, match="input 'q' is no plain tensor"):
        fix_inputs(found, {"q": 1})


def test_a_model_is_not_ready_before_its_inputs_are_fixed() -> None:
    found = build("(float[2] x, float s) => (float[2] y) { y = Mul(x, s) }")
    assert is_ready(found, Wishes())
    assert not is_ready(found, Wishes(fix_inputs={"s": 3}))
    done = prepare(found, Wishes(fix_inputs={"s": 3}))
    assert (done.rewritten, done.notes) == (True, ["input 's' is the constant 3.0"])
    assert done.fixed["s"] == 3
