"""A file of choices made on a device: taken, and every way in which it can be wrong."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import cli
from onnx_lathe.optimizer.recipe import load_recipe
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.winograd.winograd import Winograd
from tests.support.builders import build, random

TWO = """(float[1, 16, 14, 14] x) => (float[1, 16, P, Q] y) {
    [a] v = Conv <pads = [1, 1, 1, 1]> (x, w)
    [b] y = Conv <pads = [1, 1, 1, 1]> (v, w)
}"""
"""By cost, both are direct."""
RIGHT = {"format": 1, "device": "a phone", "layers": {"a": "winograd43"}}


def model() -> onnx.ModelProto:
    return build(TWO, w=random(16, 16, 3, 3))


def written(folder: Path, table: Any) -> Path:
    path = folder / "choices.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def algorithms(after: onnx.ModelProto) -> dict[str, str]:
    return {
        node.name: entry.value
        for node in after.graph.node
        for entry in node.metadata_props
        if entry.key == metadata.CONV_ALGORITHM
    }


def test_the_file_decides_and_by_decides_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, RIGHT)
    after, report = apply_pass(configure(Winograd, {"tuning": str(path)}), model(), Context())
    assert algorithms(after) == {"a": "winograd43", "b": "direct"}
    assert "winograd43: as a phone chose" in report.edits[0].what
    over = configure(Winograd, {"tuning": str(path), "layers": {"a": "winograd63"}})
    assert algorithms(apply_pass(over, model(), Context())[0])["a"] == "winograd63"


@pytest.mark.parametrize(
    "table, says",
    [
        ("{", "is not JSON"),
        ([], "is no table"),
        ({"layers": {}}, "has format None; this version reads format 1"),
        (RIGHT | {"format": 2}, "has format 2"),
        (RIGHT | {"layer": {}}, "has 'layer', which is not known; did you mean 'layers'?"),
        (RIGHT | {"layers": ["a"]}, "lacks the table 'layers'"),
        (RIGHT | {"device": 3}, "'device' is no text"),
        (RIGHT | {"layers": {"a": "fft"}}, "layer 'a' takes direct, winograd23, winograd43, winograd63, not 'fft'"),
        (RIGHT | {"layers": {"a": 4}}, "layer 'a' takes direct, winograd23, winograd43, winograd63, not 4"),
        (RIGHT | {"layers": {"a": ["x"]}}, r"layer 'a' takes direct"),
    ],
)  # fmt: skip
def test_a_wrong_file(table: Any, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, table)
    with pytest.raises(UsageError) as caught:
        configure(Winograd, {"tuning": str(path)})
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.json: cannot read the choices \(No such file"):
        configure(Winograd, {"tuning": str(tmp_path / "none.json")})


def test_a_layer_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = written(tmp_path, RIGHT | {"layers": {"a": "direct", "cnv": "direct"}})
    with pytest.raises(
        UsageError, match=r"choices.json: the model has no 3x3 convolution 'cnv' that has a choice"
    ):
        apply_pass(configure(Winograd, {"tuning": str(path)}), model(), Context())


def test_of_the_command(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "model.onnx")
    path, out = written(tmp_path, RIGHT), tmp_path / "out"
    arguments = [
        str(tmp_path / "model.onnx"),
        "--passes",
        "winograd",
        "--tuning",
        str(path),
        "--out",
        str(out),
    ]
    assert cli.main([*arguments, "--no-latency", "--quiet"]) == 0
    assert algorithms(onnx.load(out / "model.onnx")) == {"a": "winograd43", "b": "direct"}


def test_no_pass_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(), tmp_path / "model.onnx")
    path = written(tmp_path, RIGHT)
    assert cli.main([str(tmp_path / "model.onnx"), "--passes", "fold", "--tuning", str(path)]) == 2
    assert (
        f"--tuning {path}: no pass of the recipe takes it; add winograd to --passes"
        in capsys.readouterr().err
    )


def test_a_recipe_means_its_own_folder(tmp_path: Path) -> None:
    written(tmp_path, RIGHT)
    for text in (
        'passes = "winograd(tuning=choices.json)"',
        '[[pass]]\nname = "winograd"\ntuning = "choices.json"',
    ):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(text)
        (step,) = load_recipe(recipe).steps
        assert step.options["tuning"] == str(tmp_path / "choices.json")
        load_recipe(recipe).passes()


def test_a_changed_file_is_another_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(), tmp_path / "model.onnx")
    path, out = written(tmp_path, RIGHT), tmp_path / "out"
    arguments = [str(tmp_path / "model.onnx"), "--passes", f"winograd(tuning={path})", "--out", str(out)]
    assert cli.main([*arguments, "--no-latency", "--quiet"]) == 0
    written(tmp_path, RIGHT | {"layers": {"b": "direct"}})
    assert cli.main([*arguments, "--no-latency", "--quiet", "--resume"]) == 2
    assert "--resume" in capsys.readouterr().err
