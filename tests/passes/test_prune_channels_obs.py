"""prune_channels(importance=obs): channels that cost the answers of the layers that read them least, and layers that make
up for them.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running import ort
from tests.support.answers import applied, context, errors, network, saved
from tests.support.builders import build, random
from tests.support.channel_cases import CASES
from tests.support.channels import shapes
from tests.support.codebooks import constants, mixed

WIDTHS = ("a", "d", "e")


def macs(model: onnx.ModelProto) -> float:
    found = measure(model).macs
    assert found is not None
    return float(found)


@pytest.mark.parametrize("amount", [{"sparsity": 0.4}, {"sparsity": 0.4, "scope": "global"}, {"macs": 0.6}])
def test_as_many_channels_cost_the_outputs_less(amount: dict[str, object]) -> None:
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    plain, _ = applied("prune_channels", model, where, importance="activation", **amount)
    chosen, _ = applied("prune_channels", model, where, importance="obs", refit=False, **amount)
    found, report = applied("prune_channels", model, where, importance="obs", **amount)
    before, between, after = errors(mixed(200, 3, 8, 8), model, plain, chosen, found)
    assert after < 0.75 * before
    assert after < 0.8 * between
    assert shapes(chosen).items() <= shapes(found).items()  # e has no bias before
    left = {name: shapes(found)[name][0] for name in WIDTHS}
    assert left["a"] == left["d"]
    if "macs" in amount:
        assert 0.5 < macs(found) / macs(model) <= 0.6
    else:
        assert sum(left.values()) <= 88 - round(0.4 * 88)
        if "scope" not in amount:
            assert (left["a"], left["e"]) == (19, 14)
        else:
            assert sum(left.values()) >= 88 - round(0.4 * 88) - 1  # a unit of a and d is two channels
    assert any("answers" in edit.what for edit in report.edits)
    assert any("channels are removed" in edit.what for edit in report.edits)


def test_a_channel_that_others_can_stand_in_for_goes_and_nothing_is_lost() -> None:
    a, e = random(12, 3, 3, 3), random(5, 12, 3, 3)
    a[6:] = a[:6] * (0.5 + np.abs(random(6, 1, 1, 1)))
    model = build(
        """(float[N, 3, 8, 8] x) => (float[N, 5, 4, 4] y) {
            h = Conv (x, a)  r = Relu (h)  y = Conv (r, e) }""",
        a=a,
        e=e,
    )
    where = context(model, x=mixed(100, 3, 8, 8))
    found, report = applied("prune_channels", model, where, importance="obs", sparsity=0.5)
    left = constants(found)["a"]
    pairs = [int(np.flatnonzero([np.allclose(one, row) for one in a])[0]) % 6 for row in left]
    assert sorted(pairs) == list(range(6))
    assert errors(mixed(80, 3, 8, 8), model, found)[0] < 1e-3
    # nothing went from the layer that writes the output, and its answers were fitted
    assert [edit.node for edit in report.edits] == ["Conv_0", "Conv_2"]
    assert (found.graph.node[0].op_type, shapes(found)["e"]) == ("Conv", [5, 6, 3, 3])


COUPLED = {name: CASES[name] for name in CASES if name not in ("shared weight", "resized", "padded shortcut")}


@pytest.mark.parametrize("name", COUPLED)
def test_what_is_coupled_goes_together(name: str) -> None:
    text, initializers, wanted = COUPLED[name]
    model = build(text, opset=18 if name == "split" else 17, **initializers)
    size = 4 if "4, 4]" in text.partition("=>")[0] else 8
    where = context(model, x=mixed(80, 3, size, size))
    found, report = applied("prune_channels", model, where, importance="obs", sparsity=0.3)
    if "transposed" in name:
        assert any(
            "what ConvTranspose makes of its inputs is not measured" in skip.reason for skip in report.skips
        )
        return
    assert {key: shapes(found)[key] for key in wanted} == wanted
    contract.check_structure(model, found, "prune_channels")
    plain, _ = applied("prune_channels", model, where, sparsity=0.3)
    before, after = errors(mixed(60, 3, size, size), model, plain, found)
    assert after < before


def test_what_hardly_reaches_the_outputs_loses_most() -> None:
    model = build(
        """(float[N, 8] x) => (float[N, 6] y) {
            g = MatMul (x, a)  r = Relu (g)  p = MatMul (r, b)  h = MatMul (x, c)  s = Relu (h)  q = MatMul (s, d)
            y = Add (p, q) }""",
        a=random(8, 24),
        b=random(24, 6) / 20,
        c=random(8, 24),
        d=random(24, 6),
    )
    where = context(model, x=random(80, 8))
    for amount in ({"macs": 0.6}, {"scope": "global", "sparsity": 0.4}):
        found, _ = applied("prune_channels", model, where, importance="obs", **amount)
        assert shapes(found)["b"][0] < 0.4 * shapes(found)["d"][0]


def test_readers_that_cannot_be_measured_keep_their_channels_and_say_why() -> None:
    model = build(
        """(float[N, 8, 5, 5] x) => (float[N, 4, 7, 7] y, float[N, 4, 5, 5] z) {
            h = Conv (x, a)  y = ConvTranspose (h, b)  g = Conv (x, c)  r = Relu (g)  z = Conv (r, d) }""",
        a=random(8, 8, 1, 1),
        b=random(8, 4, 3, 3),
        c=random(8, 8, 1, 1),
        d=random(4, 8, 1, 1),
    )
    where = context(model, x=mixed(60, 8, 5, 5))
    found, report = applied("prune_channels", model, where, importance="obs", sparsity=0.5)
    assert shapes(found)["a"] == [8, 8, 1, 1]
    assert shapes(found)["c"] == [4, 8, 1, 1]
    assert [skip.reason for skip in report.skips if skip.node == "Conv_0"] == [
        "its channels stay: what ConvTranspose_1 loses by them is not known: "
        "what ConvTranspose makes of its inputs is not measured"
    ]


def test_what_never_varies_keeps_its_channels() -> None:
    model = network()
    where = context(model, x=np.zeros((40, 3, 8, 8), np.float32))
    found, report = applied("prune_channels", model, where, importance="obs")
    assert shapes(found) == shapes(model)
    assert any("Conv_4's inputs do not vary on calibration data" in skip.reason for skip in report.skips)


def test_layers_multiples_and_zeros_that_are_there() -> None:
    model = network()
    where = context(model, x=mixed(100, 3, 8, 8))
    sparse, _ = applied("prune", model, where, sparsity=0.5, layers={"e": 0.7, "*": 0.0})
    options = {"importance": "obs", "macs": 0.7, "keep_multiple": 4}
    found, _ = applied("prune_channels", sparse, where, **options)
    assert macs(found) <= 0.7 * macs(model)
    assert all(shapes(found)[name][0] % 4 == 0 for name in WIDTHS)
    before = constants(sparse)["e"]
    after = constants(found)["e"]
    assert (after == 0).mean() == pytest.approx((before == 0).mean(), abs=0.1)
    found, _ = applied("prune_channels", model, where, **options, layers={"e": 0.0})
    assert shapes(found)["e"][0] == 24
    assert shapes(found)["a"][0] < 32


def test_channels_chosen_otherwise_are_made_up_for_too() -> None:
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    plain, quiet = applied("prune_channels", model, where, sparsity=0.4)
    found, report = applied("prune_channels", model, where, sparsity=0.4, refit=True)
    before, after = errors(mixed(200, 3, 8, 8), model, plain, found)
    assert after < 0.5 * before
    assert shapes(plain).items() <= shapes(found).items()  # e has no bias before
    assert len(report.edits) > len(quiet.edits)


def test_few_samples_are_warned_of() -> None:
    model = network()
    _, report = applied("prune_channels", model, context(model, x=mixed(8, 3, 8, 8)), importance="obs")
    assert sum("8 calibration samples" in warning for warning in report.warnings) == 1


@pytest.mark.parametrize("options", [{"importance": "obs"}, {"refit": True}])
def test_it_needs_calibration_data(options: dict[str, object]) -> None:
    assert "calibrator" in configure(find("prune_channels"), options).needs
    assert configure(find("prune_channels"), {"importance": "obs", "refit": False}).needs == ("calibrator",)
    with pytest.raises(PassError, match="calibration"):
        applied("prune_channels", network(), Context(), **options)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    data = saved(model, tmp_path)
    passes = ["--passes", "prune_channels(importance=obs, macs=0.7), refit"]
    assert main([str(tmp_path / "m.onnx"), *passes, *data, "--out", str(tmp_path / "out")]) == 0
    assert "channels are removed" in capsys.readouterr().out
    final = onnx.load(tmp_path / "out" / "model.onnx")
    contract.check_structure(model, final, "prune_channels")
    ort.session(final)
    assert main([str(tmp_path / "m.onnx"), *passes, "--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "pass 'prune_channels' needs calibration data for importance=obs; give --data" in said
    assert len(said.strip().splitlines()) == 1
