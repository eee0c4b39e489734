"""Activations beyond float16 are found by name before ncnn computes in it."""

import numpy as np
import pytest

from onnx_lathe.runtime.targets.ncnn import halves
from onnx_lathe.runtime.targets.ncnn.halves import beyond_half
from tests.support.builders import build

TEXT = """(float[N, 4] x) => (float[N, 4] y) {
    [small] a = Mul(x, one) [large] b = Mul(a, many) [larger] c = Mul(b, one) d = Mul(c, one)
    [counted] s = Shape(x) [whole] i = Cast <to = 7> (b) [back] y = Mul(d, few) }"""


def feeds(largest: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[0, 1, -largest, 2]], np.float32)}


def model(many: float) -> object:
    return build(
        TEXT,
        one=np.ones(1, np.float32),
        many=np.array([many], np.float32),
        few=np.array([1e-6], np.float32),
    )


def test_the_first_nodes_beyond_half_the_range_are_named_in_order() -> None:
    found = beyond_half(model(1000.0), feeds(50.0))  # type: ignore[arg-type]
    assert found == [("large", 50000.0), ("larger", 50000.0), ("d", 50000.0)]


@pytest.mark.parametrize("largest, beyond", [(32.7, False), (32.8, True)])
def test_the_margin_is_two(largest: float, beyond: bool) -> None:
    assert bool(beyond_half(model(1000.0), feeds(largest))) is beyond  # type: ignore[arg-type]


def test_infinite_values_count_and_nan_hides_none() -> None:
    given = {"x": np.array([[np.nan, np.inf, 1, 2]], np.float32)}
    assert beyond_half(model(1.0), given)[0] == ("small", np.inf)  # type: ignore[arg-type]


def test_in_pieces_it_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = beyond_half(model(1000.0), feeds(50.0))  # type: ignore[arg-type]
    monkeypatch.setattr(halves, "CHUNK_BYTES", 20)
    assert beyond_half(model(1000.0), feeds(50.0)) == whole  # type: ignore[arg-type]
