"""codebook(min_sqnr=...): the fewest bits per layer that keep the outputs near, by runs of a small runner."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from tests.support.builders import build, random, run
from tests.support.codebooks import constants, share, two_layers

THREE = """(float[N, 40] x) => (float[N, 20] y) {
    h = MatMul (x, a) r = Relu (h) i = MatMul (r, b) s = Relu (i) y = Gemm <transB = 1> (s, c, bias)
}"""


@dataclass
class SmallRunner:
    """A Runner of passes/core/services.py on random inputs of one shape."""

    inputs: np.ndarray
    runs: list[float] = field(default_factory=list)
    bias_db: float = 0.0
    """Added to what is reported for models that are not equal."""

    def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, float]:
        onnx.checker.check_model(candidate, full_check=True)
        expected, found = (
            run(model, {"x": self.inputs})["y"].astype(np.float64) for model in (base, candidate)
        )
        noise = np.square(expected - found).sum()
        self.runs.append(
            np.inf if noise == 0 else 10 * np.log10(np.square(expected).sum() / noise) + self.bias_db
        )
        return {"sqnr": self.runs[-1]}


def three_layers() -> onnx.ModelProto:
    """The middle layer is large, the last one adds to few outputs; their sensitivities differ by much."""
    return build(
        THREE, 21, a=random(40, 50), b=random(50, 400) * np.float32(0.05), c=random(20, 400), bias=random(20)
    )


def bounded(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport, SmallRunner]:
    runner = SmallRunner(random(32, 40))
    after, report = share(model, context=Context(runner=runner), **options)
    return after, report, runner


def bits_of(model: onnx.ModelProto) -> dict[str, float]:
    return {
        name: np.log2(value.size) for name, value in constants(model).items() if name.endswith("_codebook")
    }


@pytest.mark.parametrize("min_sqnr", [10.0, 20, 30.0])
def test_the_outputs_stay_within_the_bound_with_few_bits(min_sqnr: float) -> None:
    model = three_layers()
    after, report, runner = bounded(model, min_sqnr=min_sqnr)
    found = runner.compare(model, after)["sqnr"]
    assert found >= min_sqnr
    assert found <= min_sqnr + 6, "one bit less everywhere would cost about 6 dB"
    assert report.metrics["sqnr_db"] == pytest.approx(found, abs=1e-3)
    assert report.metrics["runs"] == len(runner.runs) - 1 <= 2 * 3 + 10
    for edit, bits in zip(report.edits, bits_of(after).values(), strict=True):
        assert edit.what.endswith(f"{bits:.0f} bits chosen")


def test_fewer_bits_in_any_layer_would_break_the_bound_or_nearly() -> None:
    model = three_layers()
    after, _, runner = bounded(model, min_sqnr=25.0)
    chosen = {name.removesuffix("_codebook"): int(bits) for name, bits in bits_of(after).items()}
    for name, bits in chosen.items():
        less, _ = share(model, layers=chosen | {name: bits - 1})
        assert runner.compare(model, less)["sqnr"] < 25.0 + 1


def test_sensitive_layers_get_more_bits() -> None:
    text = "(float[N, 40] x) => (float[N, 40] y) { h = MatMul (x, a) i = MatMul (x, b) y = Add (h, i) }"
    model = build(text, 21, a=random(40, 40), b=random(40, 40) * np.float32(0.05))
    after, _, _ = bounded(model, min_sqnr=20.0)
    bits = bits_of(after)
    assert bits["a_codebook"] >= bits["b_codebook"] + 2


def test_one_codebook_for_the_network_has_one_number_of_bits() -> None:
    model = three_layers()
    after, report, runner = bounded(model, min_sqnr=20.0, share="network")
    assert runner.compare(model, after)["sqnr"] >= 20
    assert constants(after)["codebook"].size in (8, 16, 32, 64, 128, 256)
    assert report.metrics["runs"] <= 2 + 10


def test_what_needs_more_than_eight_bits_stays_float() -> None:
    model = three_layers()
    after, report, _ = bounded(model, min_sqnr=120.0)
    assert report.edits == []
    assert {skip.reason for skip in report.skips} == {
        "with a codebook of up to 8 bits the outputs would not keep min_sqnr=120 dB"
    }
    np.testing.assert_array_equal(constants(after)["a"], constants(model)["a"])


def test_fixed_layers_keep_their_bits_and_the_others_make_up_for_it() -> None:
    model = three_layers()
    after, report, runner = bounded(model, min_sqnr=15.0, layers={"a": 4, "c": 0})
    assert bits_of(after)["a_codebook"] == 4
    assert "c_codebook" not in bits_of(after)
    assert runner.compare(model, after)["sqnr"] >= 15
    assert [edit.what.endswith("bits chosen") for edit in report.edits] == [False, True]


def test_fixed_layers_that_break_the_bound_alone_are_an_error() -> None:
    with pytest.raises(
        PassError, match=r"what layers=, .* fix leaves \d+\.\d dB, below min_sqnr=40; give them"
    ):
        bounded(three_layers(), min_sqnr=40.0, layers={"a": 2})


@pytest.mark.parametrize("options", [{"biases": 1}, {"biases": 2, "mantissa": 2}])
def test_biases_count_within_the_bound(options: dict[str, object]) -> None:
    model = two_layers()
    after, report, runner = bounded(model, min_sqnr=25.0, **options)
    found = runner.compare(model, after)["sqnr"]
    assert found >= 25
    assert report.metrics["sqnr_db"] == pytest.approx(found, abs=1e-3)


def test_rounded_codebooks_and_biases_alone_are_bound_too() -> None:
    once, _ = share(two_layers(), bits=3)
    with pytest.raises(PassError, match=r"biases= and mantissa= fix leaves \d+\.\d dB, below min_sqnr=35"):
        bounded(once, min_sqnr=35.0, biases=1, mantissa=0)
    after, report, runner = bounded(once, min_sqnr=5.0, biases=1, mantissa=0)
    assert report.metrics["sqnr_db"] == pytest.approx(runner.compare(once, after)["sqnr"], abs=1e-3)


@pytest.mark.parametrize("bound", [-5000.0, 1e300])
def test_bounds_that_no_output_can_keep_or_break_are_refused(bound: float) -> None:
    with pytest.raises(UsageError, match=r"codebook\(min_sqnr=\.\.\.\) must be 0.0 to 300.0"):
        configure(Codebook, {"min_sqnr": bound})


def test_a_sparse_initializer_is_measured_like_others() -> None:
    weight = random(40, 50)
    weight[np.abs(weight) < 1] = 0
    model = build("(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }", 21, w=weight)
    dense, places = model.graph.initializer.pop(), np.flatnonzero(weight)
    values = onnx.helper.make_tensor(
        dense.name, onnx.TensorProto.FLOAT, places.shape, weight.reshape(-1)[places]
    )
    indices = onnx.helper.make_tensor("", onnx.TensorProto.INT64, places.shape, places)
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, weight.shape))
    after, _, runner = bounded(model, min_sqnr=20.0)
    assert bits_of(after).keys() == {"w_codebook"}
    assert runner.compare(model, after)["sqnr"] >= 20


def test_a_model_that_codebooks_do_not_change_gets_the_fewest_bits() -> None:
    palette = np.array([-1, 1], np.float32)
    generator = np.random.default_rng(0)
    model = build(
        "(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }",
        21,
        w=palette[generator.integers(0, 2, (40, 50))],
    )
    after, report, _ = bounded(model, min_sqnr=60.0)
    assert constants(after)["w_codebook"].tolist() == [-1, 1]
    assert report.edits[0].what == "2 shared values, 4-bit indices, exact, 1 bits chosen"


def test_outputs_that_are_not_a_number_are_no_success() -> None:
    class Broken:
        def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, float]:
            same = base.graph.initializer[0].raw_data == candidate.graph.initializer[0].raw_data
            return {
                "sqnr": np.inf
                if same and base.SerializeToString() == candidate.SerializeToString()
                else np.nan
            }

    _, report = share(two_layers(), context=Context(runner=Broken()), min_sqnr=20.0)
    assert report.edits == []


def test_only_the_bound_needs_a_runner() -> None:
    assert configure(Codebook, {}).needs == ()
    assert configure(Codebook, {"min_sqnr": 20}).needs == ("runner",)
    with pytest.raises(PassError, match="calibration data"):
        share(two_layers(), min_sqnr=20)


def test_the_bound_and_training_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="min_sqnr bounds what sharing alone does"):
        configure(Codebook, {"min_sqnr": 20, "training": {"epochs": 1}})
