"""How far LiteRT may be from ONNX Runtime, by whose kernels."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.litert.running import REFERENCE, XNNPACK
from onnx_lathe.runtime.targets.litert.verify import EACH_TERM, Reference, check
from onnx_lathe.runtime.targets.litert.work import longest_sum, multiplications
from tests.support.builders import build, random
from tests.support.litert import written

TEXT = """(float[1, 8, 9, 9] x) => (float[1, 20] y) {
    a = Conv <group = 8> (x, d)  b = Conv (a, c)  f = Flatten (b)  y = Gemm <transB = 1> (f, w) }"""


def network() -> Any:
    return build(TEXT, d=random(8, 1, 5, 5), c=random(3, 8, 3, 3), w=random(20, 27))


def test_the_longest_sum_and_all_multiplications() -> None:
    net = written(network()).conversion.network
    assert longest_sum(net) == 8 * 9
    assert multiplications(net) == 25 * 8 * 25 + 27 * 72 + 20 * 27
    small = build("(float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }")
    assert longest_sum(written(small).conversion.network) == 0


class Off:
    """A LiteRT whose outputs are off by a share of the largest value."""

    def __init__(self, wanted: dict[str, np.ndarray], share: float) -> None:
        self.outputs = [type("Port", (), {"name": name, "quantization": None})() for name in wanted]
        self.results = {
            name: (values + share * np.abs(values).max()).astype(np.float32)
            for name, values in wanted.items()
        }

    def run(self, sample: object) -> dict[str, np.ndarray]:
        return self.results


def test_plain_kernels_may_be_off_by_what_sums_one_after_the_other_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnx_lathe.runtime.targets.litert.verify.as_float", lambda values, port: values)
    model, sample = network(), {"x": random(1, 8, 9, 9)}
    reference = Reference(model, sample, stored=False, half=False, plain=EACH_TERM * 9216)
    off: Any = Off(ort.run(ort.session(model), sample), 3e-4)
    check(reference.compare(off, REFERENCE))
    with pytest.raises(TargetError, match=r"XNNPACK.*off by 3.0e-04 of its size, 1.0e-04 are allowed"):
        check(reference.compare(off, XNNPACK))
    check(reference.compare(off, REFERENCE))
    short = Reference(model, sample, stored=False, half=False, plain=EACH_TERM * 72)
    with pytest.raises(TargetError, match=r"reference kernels.*1.0e-04 are allowed"):
        check(short.compare(off, REFERENCE))


INDEXED = """(int64[1, 64] ids) => (float[1, 8] y) {{
    r = Gather (table, ids)  m = ReduceMean <axes = [1], keepdims = 0> (r)  {rest} }}"""
CANCELLING = "s = Mul (r, r)  q = ReduceMean <axes = [1], keepdims = 0> (s)  p = Mul (m, m)  y = Sub (q, p)"


@pytest.mark.parametrize(("rest", "allowed"), [(CANCELLING, True), ("y = Neg (m)", False)])
def test_a_network_of_integers_is_moved_by_its_weights(
    rest: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variance of 1e-5, computed of squares of 1, multiplies their rounding by 1e5; a mean does not."""
    monkeypatch.setattr("onnx_lathe.runtime.targets.litert.verify.as_float", lambda values, port: values)
    model = build(INDEXED.format(rest=rest), table=1 + np.float32(0.003) * random(64, 8))
    sample = {"ids": np.arange(64)[None]}
    reference = Reference(model, sample, stored=False, half=False)
    off: Any = Off(ort.run(ort.session(model), sample), 1e-3)
    result = reference.compare(off, XNNPACK)
    assert (result.found["y"] <= result.allowed["y"]) is allowed


def test_floats_beside_integers_leave_it_to_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mask of ones does, which a change of itself moves by nothing that tells of rounding."""
    monkeypatch.setattr("onnx_lathe.runtime.targets.litert.verify.as_float", lambda values, port: values)
    text = INDEXED.format(rest=CANCELLING.replace("Sub (q, p)", "Sub (q, p)  z = Neg (mask)"))
    text = text.replace("ids)", "ids, float[1, 8] mask)", 1).replace("y) {", "y, float[1, 8] z) {", 1)
    model = build(text, table=1 + np.float32(0.003) * random(64, 8))
    sample = {"ids": np.arange(64)[None], "mask": np.ones((1, 8), np.float32)}
    off: Any = Off(ort.run(ort.session(model), sample), 1e-3)
    result = Reference(model, sample, stored=False, half=False).compare(off, XNNPACK)
    assert result.found["y"] <= result.allowed["y"]


@pytest.mark.parametrize("end", [-np.inf, np.finfo(np.float32).min, -1e9])
def test_what_stands_for_no_end_in_a_mask_moves_nothing_else(
    end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of its size is more than all that it is added to."""
    monkeypatch.setattr("onnx_lathe.runtime.targets.litert.verify.as_float", lambda values, port: values)
    masked = "a = Add (m, mask)  b = Softmax (a)  y = Mul (b, m)"
    mask = np.where(np.arange(8) < 5, 0, end).astype(np.float32)[None]
    model = build(INDEXED.format(rest=masked), table=random(64, 8), mask=mask)
    sample = {"ids": np.arange(64)[None]}
    off: Any = Off(ort.run(ort.session(model), sample), 1e-3)
    result = Reference(model, sample, stored=False, half=False).compare(off, XNNPACK)
    assert result.found["y"] > 5e-4 > result.allowed["y"]
