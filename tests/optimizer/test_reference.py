"""`optimize passes NAME`: a pass's own options, and those of training once, under a heading of their own."""

from dataclasses import fields

import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.passes.core.training_options import TrainingOptions

HEADING = "training={...}"


def page(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    assert main(["passes", name]) == 0
    return capsys.readouterr().out.splitlines()


def listed(lines: list[str]) -> list[str]:
    """The options of a table, in order: words that begin a line."""
    known = {field.name for pass_class in all_passes().values() for field in fields(pass_class.Config)}
    return [line.split()[0] for line in lines if line[:1].strip() and line.split()[0] in known]


@pytest.mark.parametrize("name", ["prune", "codebook"])
def test_options_of_training_stand_below_the_passs_own(capsys: pytest.CaptureFixture[str], name: str) -> None:
    lines = page(capsys, name)
    assert lines.count(HEADING) == 1
    own, inner = lines[: lines.index(HEADING)], lines[lines.index(HEADING) :]
    assert listed(own) == [field.name for field in fields(all_passes()[name].Config)]
    assert listed(inner) == [field.name for field in fields(TrainingOptions)]
    training = next(line for line in own if line.startswith("training"))
    assert training.split()[1:5] == ["table", "or", "none", "none"]


def test_prune_says_what_comes_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(" ".join(page(capsys, "prune")).split())
    assert text.startswith(
        "prune: Sets the least important weights to zero, at once or while the model is retrained "
    )
    assert text.endswith("comes before int8: the INT8 scales are chosen for the weights that are left")
    assert "comes after fold: a folded batch normalization" in text
    assert "pattern" not in listed(page(capsys, "prune"))


@pytest.mark.parametrize("name", ["retrain", "prune_channels", "prune_nm", "fold"])
def test_a_pass_without_the_option_has_no_such_heading(capsys: pytest.CaptureFixture[str], name: str) -> None:
    lines = page(capsys, name)
    assert HEADING not in lines
    assert listed(lines) == [field.name for field in fields(all_passes()[name].Config)]
