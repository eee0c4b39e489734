"""`optimize sensitivity`: one layer at a time, against what the passes themselves do; cache, interruption, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.judging import Judge
from onnx_lathe.optimizer.search.sensitivity import Single
from onnx_lathe.optimizer.search.strengths import layers_of, per_layer
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.data import keyboard_interrupt_at

NETWORK = "(float[N, 12] x) => (float[N, 6] y) { h = MatMul (x, w1)  r = Relu (h)  y = MatMul (r, w2) }"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model of two layers and unlabelled data, as current directory."""
    onnx.save(build(NETWORK, w1=random(12, 48), w2=random(48, 6)), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=random(60, 12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(*more: str, step: str = "prune") -> list[str]:
    return ["sensitivity", "model.onnx", "--pass", step, "--data", "data.npz", "--quiet", *more]


@pytest.mark.parametrize(
    "step, strengths", [("prune", "0.3,0.9"), ("codebook", "6,2"), ("svd", "4,1"), ("int8", None)]
)
def test_a_stronger_setting_costs_more(
    step: str, strengths: str | None, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if strengths is None else ["--strengths", strengths]
    assert main(asked("--json", *more, step=step)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "agreement"  # no labels
    assert found["complete"]
    layers = {point["layer"] for point in found["points"]}
    assert layers == {"w1", "w2"}
    for layer in layers:
        sqnr = [point["metrics"]["sqnr"] for point in found["points"] if point["layer"] == layer]
        assert sqnr == sorted(sqnr, reverse=True)
        assert len(sqnr) == (1 if strengths is None else 2)


@pytest.mark.parametrize("name, value", [("prune", 0.7), ("codebook", 3)])
def test_a_layer_put_in_is_what_the_pass_makes_of_it_alone(name: str, value: float, place: Path) -> None:
    model = onnx.load("model.onnx")
    step = Call(name, {})
    dimensions = per_layer([step], 0, layers_of(model, name, {}), False, (0, value))
    single = Single(model, step, dimensions, Context)
    assert single.composer is not None
    feeds = {"x": random(5, 12)}
    for one in dimensions:
        made = ort.run(ort.session(single.candidate(one, value)), feeds)["y"]
        alone = onnx_lathe.rewrite(model, f"{name}(layers={{'*': 0, {one.layer}: {value}}})")
        np.testing.assert_allclose(made, ort.run(ort.session(alone), feeds)["y"], rtol=1e-5, atol=1e-5)
        unchanged = ort.run(ort.session(model), feeds)["y"]
        assert np.abs(made - unchanged).max() > 1e-3


def test_what_is_known_is_not_measured_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert main(asked("--json")) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(Judge, "measure", None)
    assert main(asked("--json")) == 0
    assert json.loads(capsys.readouterr().out) == first
    monkeypatch.undo()
    monkeypatch.chdir(place)
    onnx.save(build(NETWORK, w1=random(12, 48), w2=2 * random(48, 6)), "model.onnx")
    assert main(asked("--json")) == 0
    assert json.loads(capsys.readouterr().out)["points"] != first["points"]


def test_an_interruption_leaves_a_part_with_a_word(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Judge, "measure", keyboard_interrupt_at(4, Judge.measure))
    assert main(asked()) == 130
    said = capsys.readouterr().out
    assert "interrupted: 1 of 2 layers are begun; the same command goes on" in said
    assert main(asked("--json")) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


def test_the_page_stands_alone_and_has_every_layer(place: Path) -> None:
    assert main(asked("--html", "page.html")) == 0
    page = (place / "page.html").read_text()
    assert "<svg" in page
    assert page.count("<polyline") == 2
    assert "http" not in page
    assert all(name in page for name in ("w1", "w2")) or page.count('scope="row"') == 2


def test_as_a_function(place: Path) -> None:
    found = onnx_lathe.sensitivity(
        onnx.load("model.onnx"), "prune", data={"x": random(40, 12)}, strengths=[0.5, 0.95], subset=20
    )
    assert found.base["sqnr"] == np.inf
    assert [point.strength for point in found.points] == [0.5, 0.95] * 2


@pytest.mark.parametrize(
    "more, step, said",
    [
        ([], "prunee", "no strength per layer; did you mean 'prune'?"),
        ([], "fold", "has no strength per layer; there are prune"),
        (["--strengths", "0.5,1.5"], "prune", "must be 0.0 to 1.0, not 1.5"),
        (["--strengths", "a"], "prune", "give numbers with commas between"),
        (["--subset", "0"], "prune", "give at least 1 sample"),
        ([], "prune(sparsit=1)", "did you mean 'sparsity'?"),
        ([], "prune(layers={w*: 0.5})", "so there is nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    more: list[str], step: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, asked(*more, step=step))


CONVOLUTIONS = """(float[N, 8, 6, 6] x) => (float[N, 6] y) {
    a = Conv <pads=[1, 1, 1, 1]> (x, w1)  r = Relu (a)  b = Conv <pads=[1, 1, 1, 1]> (r, w2)
    p = GlobalAveragePool (b)  f = Flatten (p)  y = Gemm (f, w3)
}"""


def convolutions() -> onnx.ModelProto:
    return build(CONVOLUTIONS, w1=random(16, 8, 3, 3), w2=random(16, 16, 3, 3), w3=random(16, 6))


@pytest.mark.parametrize(
    "step, strengths", [("tucker", "12,4"), ("tucker(form=cp)", "24,6"), ("prune(score=obs)", "0.3,0.9")]
)
def test_convolutions_split_in_three_are_measured(
    step: str, strengths: str, place: Path, capsys: Any
) -> None:
    onnx.save(convolutions(), "model.onnx")
    np.savez("data.npz", x=random(60, 8, 6, 6))
    assert main(asked("--json", "--strengths", strengths, step=step)) == 0
    found = json.loads(capsys.readouterr().out)["points"]
    assert {point["layer"] for point in found} - {"w3"} == {"w1", "w2"}  # prune takes the Gemm, too
    for layer in ("w1", "w2"):
        mild, strong = (point["metrics"]["sqnr"] for point in found if point["layer"] == layer)
        assert 1 < strong < mild < 40


@pytest.mark.parametrize(
    "step", ["int4(min_size=64)", "int4(min_size=64, rounding=hessian)", "int8(rounding=hessian)"]
)
def test_few_levels_are_on_or_off(step: str, place: Path, capsys: Any) -> None:
    assert main(asked("--json", step=step)) == 0
    found = json.loads(capsys.readouterr().out)["points"]
    assert [(point["layer"], point["strength"]) for point in found] == [("w1", True), ("w2", True)]
    assert all(10 < point["metrics"]["sqnr"] < 60 for point in found)
    assert main(asked(step=step)) == 0
    assert step[:4].upper() in capsys.readouterr().out


def test_strengths_of_tucker_save_multiplications() -> None:
    """As the pass counts them: what the ladder offers is split, and its next rank up is not."""
    model = convolutions()
    for form in ("tucker", "cp"):
        step = Call("tucker", {"form": form})
        for one in per_layer([step], 0, layers_of(model, "tucker", {}), False):
            off, *ranks = one.levels
            assert off == 0
            assert ranks == sorted(ranks, reverse=True)
            assert len(ranks) >= 4
            for rank in (ranks[0], ranks[-1]):
                after = onnx_lathe.rewrite(
                    model, f"tucker(form={form}, layers={{'*': 0, {one.layer}: {rank}}})"
                )
                assert len(after.graph.node) == len(model.graph.node) + 2


def test_sizes_that_the_model_leaves_open_are_those_of_the_data(place: Path, capsys: Any) -> None:
    """svd splits what saves multiplications, and how many there are is open here."""
    network = "(float[N, 8, H, W] x) => (float[N, 16, H, W] y) { y = Conv <pads=[1, 1, 1, 1]> (x, w) }"
    onnx.save(build(network, w=random(16, 8, 3, 3)), "model.onnx")
    np.savez("data.npz", x=random(20, 8, 6, 6))
    assert main(asked("--json", "--strengths", "8,2", step="svd")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["strength"] for point in found["points"]] == [8, 2]
    assert found["points"][0]["metrics"]["sqnr"] > found["points"][1]["metrics"]["sqnr"]
