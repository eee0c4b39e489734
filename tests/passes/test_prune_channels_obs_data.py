"""prune_channels(importance=obs) where data or outputs tell little, and as many channels as were asked for."""

import numpy as np
import pytest

from tests.support.answers import applied, context, errors
from tests.support.builders import build, random
from tests.support.channels import shapes
from tests.support.codebooks import mixed

COMPETING = ({"macs": 0.6}, {"scope": "global", "sparsity": 0.4})
TWO_PATHS = """g = MatMul (x, a)  r = Relu (g)  p = MatMul (r, b)  h = MatMul (x, c)  s = Relu (h)  q = MatMul (s, d)
    y = Add (p, q)"""
ONE_PATH = "(float[N, 8] x) => (float[N, 6] y) { g = MatMul (x, a)  r = Relu (g)  y = MatMul (r, b) }"


@pytest.mark.parametrize("amount", COMPETING)
@pytest.mark.parametrize(
    ("second", "reason"), [("z = Sub (x, x)", "it never varies"), ("o = Sub (x, x)  z = Log (o)", "infinite")]
)
def test_an_output_that_tells_nothing_hides_no_other(
    amount: dict[str, object], second: str, reason: str
) -> None:
    weights = {"a": random(8, 24), "b": random(24, 6) / 20, "c": random(8, 24), "d": random(24, 6)}
    model = build(
        f"(float[N, 8] x) => (float[N, 6] y, float[N, 8] z) {{ {TWO_PATHS}  {second} }}", 17, **weights
    )
    where = context(model, x=random(80, 8))
    found, report = applied("prune_channels", model, where, importance="obs", refit=False, **amount)
    assert shapes(found)["b"][0] < 0.4 * shapes(found)["d"][0]
    assert errors(random(200, 8), model, found)[0] < 0.01
    (warning,) = report.warnings
    assert "does not see what the output z loses" in warning
    assert reason in warning


@pytest.mark.parametrize("amount", COMPETING)
def test_an_output_may_be_of_a_size_that_the_data_tells(amount: dict[str, object]) -> None:
    model = build(
        """(float[N, 8] x) => (float[K] y) {
            g = MatMul (x, a)  r = Relu (g)  p = MatMul (r, b)  s = Relu (p)  q = MatMul (s, c)
            k = Greater (q, zero)  i = NonZero (k)  t = Transpose (i)  y = GatherND (q, t) }""",
        a=random(8, 24),
        b=random(24, 16),
        c=random(16, 6),
        zero=np.zeros((), np.float32),
    )
    where = context(model, x=mixed(80, 8))
    found, _ = applied("prune_channels", model, where, importance="obs", **amount)
    assert shapes(found)["a"][1] + shapes(found)["b"][1] <= 0.75 * (24 + 16)


@pytest.mark.parametrize("amount", [{"sparsity": 0.5}, *COMPETING])
def test_samples_kept_apart_may_be_zeros(amount: dict[str, object]) -> None:
    model = build(ONE_PATH, a=random(8, 24), b=random(24, 6))
    x = mixed(40, 8)
    x[3::4] = 0  # whatever their order, among the first four some are not
    for held in range(4):
        samples = x[:4].copy()
        samples[3], samples[held] = samples[held].copy(), 0
        found, report = applied(
            "prune_channels", model, context(model, x=samples), importance="obs", **amount
        )
        assert any("channels are removed" in edit.what for edit in report.edits)
        assert shapes(found)["a"][1] <= 14
        assert errors(mixed(50, 8), model, found)[0] < 0.5


@pytest.mark.parametrize(("multiple", "gone"), [(1, 120), (64, 80)])
def test_no_more_channels_go_than_were_asked_for(multiple: int, gone: int) -> None:
    model = build(ONE_PATH, a=random(8, 400), b=random(400, 6))
    where = context(model, x=mixed(80, 8))
    options = {"importance": "obs", "refit": False, "scope": "global", "sparsity": 0.3}
    found, _ = applied("prune_channels", model, where, **options, keep_multiple=multiple)
    assert shapes(found)["a"][1] == 400 - gone


def test_groups_that_compete_lose_no_more_than_was_asked_for_together() -> None:
    weights = {"a": random(8, 90), "b": random(90, 6), "c": random(8, 130), "d": random(130, 6)}
    model = build(f"(float[N, 8] x) => (float[N, 6] y) {{ {TWO_PATHS} }}", **weights)
    where = context(model, x=mixed(80, 8))
    for sparsity in (0.2, 0.37, 0.6):
        options = {"importance": "obs", "refit": False, "scope": "global", "sparsity": sparsity}
        found, _ = applied("prune_channels", model, where, **options)
        assert 220 - shapes(found)["b"][0] - shapes(found)["d"][0] == round(sparsity * 220)


def test_layers_that_cannot_be_fitted_are_named() -> None:
    model = build(ONE_PATH, a=random(8, 24), b=random(24, 6))
    where = context(model, x=np.zeros((40, 8), np.float32))
    found, report = applied("prune_channels", model, where, sparsity=0.5, refit=True)
    assert shapes(found)["a"] == [8, 12]
    assert [(skip.node, skip.reason) for skip in report.skips if skip.node == "MatMul_2"][-1] == (
        "MatMul_2",
        "not fitted: its answers do not vary on calibration data",
    )
