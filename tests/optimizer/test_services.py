"""Which data plays which role, and what the report says of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.recipe import Recipe, override
from onnx_lathe.optimizer.services import CALIBRATION_SAMPLES, open_roles, warnings
from onnx_lathe.passes.core.registry import all_passes
from tests.support.builders import build


def model() -> onnx.ModelProto:
    return build("(float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }")


@pytest.mark.parametrize(
    "count, more",
    [
        (CALIBRATION_SAMPLES, ""),
        (CALIBRATION_SAMPLES + 500, f", {CALIBRATION_SAMPLES} of its 1,012 samples, at random"),
    ],
)
def test_calibration_data_that_is_not_used_whole_is_said_to_be(count: int, more: str, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32))
    assert open_roles(Recipe(calibration=str(data)), model()).notes == [f"calibration: {data}{more}"]


def test_a_function_calibrates_with_its_first_samples(tmp_path: Path) -> None:
    data = tmp_path / "data.py"
    data.write_text(
        "import numpy as np\ndef batches():\n    while True:\n        yield {'x': np.ones((4, 2), np.float32)}\n"
    )
    notes = open_roles(Recipe(calibration=f"{data}:batches"), model()).notes
    assert notes == [f"calibration: {data}:batches, the first {CALIBRATION_SAMPLES} samples at most"]


@pytest.mark.parametrize(
    "count, told", [(1, "1 calibration sample:"), (15, "15 calibration samples:"), (16, "")]
)
def test_few_calibration_samples_are_warned_of_where_they_are_needed(
    count: int, told: str, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32))
    roles = open_roles(Recipe(calibration=str(data)), model())
    passes = all_passes()
    assert [line.startswith(told) for line in warnings([passes["int8"]()], roles)] == [True] * bool(told)
    assert warnings([passes["fold"]()], roles) == []


def test_the_report_says_which_class_has_which_index(tmp_path: Path) -> None:
    for name in ("2", "10", "11"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((2, 2), 9 * int(name) + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    pictures = build("(float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) { y = Relu (x) }")
    recipe = Recipe(data=str(tmp_path / "set"), preprocess="scale=1")
    notes = open_roles(recipe, pictures).notes
    assert f"{tmp_path / 'set'}: 3 classes, from '2' (index 0) to '11' (index 2)" in notes
    assert any("pictures are stretched to 2x2 pixels" in note for note in notes)
    (tmp_path / "classes.txt").write_text("11\n10\n2\n")
    notes = open_roles(override(recipe, classes=str(tmp_path / "classes.txt")), pictures).notes
    assert f"{tmp_path / 'set'}: 3 classes, from '11' (index 0) to '2' (index 2)" in notes


def test_class_names_without_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    recipe = Recipe(data={"x": np.zeros((8, 2), np.float32)}, classes=str(tmp_path / "classes.txt"))
    with pytest.raises(UsageError, match="no data is a folder of them"):
        open_roles(recipe, model())
