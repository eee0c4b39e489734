"""Pairs of other tools in the form of phones: the ends of their ranges do the work of ReLUs that are not there."""

import numpy as np
import onnx
import pytest

from onnx_lathe.placement import PHONE
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run
from tests.support.int8 import Form, Rows
from tests.support.phone import phone_form
from tests.support.placement import lowered, relative

X = np.random.default_rng(4).standard_normal((6, 4, 8, 8)).astype(np.float32)
LEVELS = np.random.default_rng(5).integers(-40, 40, (4, 4, 3, 3)).astype(np.int8)
FRONT = """qx = QuantizeLinear (x, s, middle)  dx = DequantizeLinear (qx, s, middle)
    wd = DequantizeLinear (levels, ws, wz)  a = Conv <pads = [1, 1, 1, 1]> (dx, wd)  """
PAIR = "qe = QuantizeLinear (e, s, zero)  p = DequantizeLinear (qe, s, zero)  "


def foreign(body: str, opset: int = 17, kind: type = np.uint8) -> onnx.ModelProto:
    """`body` makes e of the Conv's result a, and y of p, which is e behind a pair without a level below 0."""
    wide = kind is np.uint16
    step = np.float32(0.03 / 257 if wide else 0.03)
    constants = {
        "s": step,
        "zero": kind(0),
        "middle": kind(32896 if wide else 128),
        "levels": LEVELS,
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "w2": random(2, 4, 1, 1),
        "w3": random(2, 8, 1, 1),
    }
    text = f"(float[N, 4, 8, 8] x) => (float[N, A, B, C] y) {{ {FRONT} {body.replace('PAIR', PAIR)} }}"
    return build(text, opset, **{name: one for name, one in constants.items() if name in text})


BODIES = {
    "pooled": "e = MaxPool <kernel_shape = [2, 2]> (a)  PAIR  y = Conv (p, wd)",
    "moved": "e = Transpose <perm = [0, 1, 3, 2]> (a)  PAIR  y = Conv (p, wd)",
    "share": "e = Tanh (a)  PAIR  y = Conv (p, wd)",
    "joined": "e = Concat <axis = 1> (a, a)  PAIR  y = Conv (p, w3)",
    "read twice": "e = Identity (a)  PAIR  y = Add (p, a)",
    "made in float": "e = Sin (a)  PAIR  y = Exp (p)",
    "float layer": "e = Conv (a, w2)  PAIR  y = Exp (p)",
    "output": "e = Sin (a)  qe = QuantizeLinear (e, s, zero)  y = DequantizeLinear (qe, s, zero)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_what_a_pair_cuts_off_stays_cut_off(body: str, kind: type) -> None:
    model = foreign(body, 21 if kind is np.uint16 else 17, kind)
    after, _ = phone_form(model, StreamingCalibrator(Rows(x=X)))
    assert relative(run(model, {"x": X})["y"], run(after, {"x": X})["y"]) < 0.03


@pytest.mark.parametrize("name", ["litert", "qnn"])
def test_so_it_does_in_the_lowerings_that_begin_with_this_form(name: str) -> None:
    model = foreign(BODIES["joined"])
    after, _ = lowered(model, name, PHONE)
    assert relative(run(model, {"x": X})["y"], run(after, {"x": X})["y"]) < 0.03


@pytest.mark.parametrize(
    "body",
    [
        "e = Add (a, a)  PAIR  y = Conv (p, wd)",
        "r = Relu (a)  e = MaxPool <kernel_shape = [2, 2]> (r)  PAIR  y = Conv (p, wd)",
    ],
)
def test_no_relu_is_written_where_the_range_does_its_work(body: str) -> None:
    after, _ = phone_form(foreign(body), StreamingCalibrator(Rows(x=X)))
    assert "Relu" not in Form(after).ops()


def test_a_layer_behind_integers_of_the_callers_is_said_to_stay_float() -> None:
    text = """(uint8[N, 4, 8, 8] x) => (float[N, 4, 6, 6] y) {
        d = DequantizeLinear (x, s, z)  wd = DequantizeLinear (levels, s, wz)  y = Conv (d, wd) }"""
    model = build(text, s=np.float32(0.01), z=np.uint8(3), levels=LEVELS, wz=np.int8(0))
    _, report = phone_form(model)
    (skip,) = report.skips
    assert skip.node.startswith("Conv")
    assert "'d' is decoded from integers" in skip.reason
