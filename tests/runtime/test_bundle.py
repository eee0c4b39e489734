"""What bundles of all targets share: ports, the description, literals, pixels."""

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.bundle import description, verify_script
from onnx_lathe.runtime.targets.bundle.examples import Examples, write_examples
from onnx_lathe.runtime.targets.bundle.literals import (
    c_float,
    c_string,
    comment,
    kotlin_string,
    swift_float,
    swift_string,
)
from onnx_lathe.runtime.targets.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.core import distances
from tests.support.builders import build, random
from tests.support.house import ROOT

PICTURE = Port(
    "image",
    "in",
    (1, 32, 24, 3),
    "int8",
    (0, 2, 3, 1),
    "float32",
    (1, 3, 32, 24),
    (None, 3, 32, 24),
    0.02,
    -3,
)
SCORES = Port("scores", "out", (1, 10), "float32", (0, 1), "float32", (1, 10), (None, 10))
SCHEMA = json.loads((ROOT / "docs" / "model.schema.json").read_text())


def described(folder: Path, **more: Any) -> dict[str, Any]:
    package = folder / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weight.bin").write_bytes(b"12")
    (package / "Manifest.json").write_bytes(b"{}")
    found = pixels_of("scale=1/255", [PICTURE])
    return description.describe(
        "coreml", [package], [PICTURE], [SCORES], found, {"storage": "float16"}, **more
    )


def test_a_description_is_of_its_schema_and_comes_back(tmp_path: Path) -> None:
    made = described(tmp_path, classes=["cat", "dog"], libraries={"coremltools": "9.0"})
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)
    assert sorted(made["files"]) == ["model.mlpackage/Data/weight.bin", "model.mlpackage/Manifest.json"]
    description.write(tmp_path / "model.json", made)
    read = description.read(tmp_path / "model.json", "model.mlpackage", "coreml")
    assert Port.from_json(read["inputs"][0]) == PICTURE
    assert json.loads(json.dumps(made)) == read


@pytest.mark.parametrize(
    "change",
    [
        {"zero_point": None},
        {"shape": (1, 32, 24, 4)},
        {"axes": (0, 2, 3, 4)},
        {"type": "int4"},
        {"least": (1, 3)},
        {"greatest": (1, 3, 32, 0), "least": (1, 3, 32, 24)},
        {"name": ""},
    ],
)
def test_a_port_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    entry = json.loads(json.dumps(replace(PICTURE, **change).as_json()))
    with pytest.raises(ValueError, match=r"image|a name"):
        Port.from_json(entry)


def test_a_description_of_another_target_or_form_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    made = described(tmp_path)
    description.write(path, made)
    with pytest.raises(ModelError, match="describes a file of target coreml, not of ncnn"):
        description.read(path, "model.ncnn.param", "ncnn")
    description.write(path, made | {"format": 1})
    with pytest.raises(
        ModelError, match=r"reads 2; write model\.mlpackage again: optimize build MODEL --target coreml"
    ):
        description.read(path, "model.mlpackage", "coreml")


def test_names_are_escaped_for_each_language() -> None:
    assert c_string('a"b\\?ä') == '"a\\042b\\134\\077\\303\\244"'
    assert kotlin_string('a"$b\\ä\U0001f600') == '"a\\u0022\\u0024b\\u005c\\u00e4\\ud83d\\ude00"'
    assert swift_string('a"\\(b)\nä') == '"a\\u{22}\\u{5c}(b)\\u{a}\\u{e4}"'
    assert comment("a*/b/*c\nd\\ä") == "a* /b/ *c d/?"
    for marks in product("*/\\", repeat=4):
        assert not {"*/", "/*"} & set(map("".join, pairwise(comment("".join(marks)))))
    assert [c_float(value) for value in (1.0, 0.1, 1e-30)] == ["1.0f", "0.1f", "1e-30f"]
    assert [swift_float(value) for value in (1.0, 0.1)] == ["1.0", "0.1"]


def test_channels_may_come_first_or_last_in_the_model() -> None:
    last = replace(
        SCORES, tensor_shape=(1, 8, 8, 3), declared=(1, 8, 8, 3), shape=(1, 8, 8, 3), axes=(0, 1, 2, 3)
    )
    first, other = pixels_of("scale=1/255", [PICTURE]), pixels_of("scale=1/255", [last])
    assert not isinstance(first, str)
    assert not isinstance(other, str)
    assert (first.channel_axis, first.made, other.channel_axis, other.made) == (1, (32, 24), 3, (8, 8))
    with pytest.raises(UsageError, match="gives 2 values per channel, but the input has 3 channels"):
        pixels_of("mean=1,2", [PICTURE])


def test_a_tensor_becomes_what_the_file_holds_and_comes_back() -> None:
    values = np.random.default_rng(0).uniform(-2, 2, (1, 3, 32, 24)).astype(np.float32)
    held = verify_script.as_file(values, PICTURE.as_json())
    assert (held.shape, held.dtype) == ((1, 32, 24, 3), np.int8)
    steps = np.clip(np.rint(values / np.float32(0.02)) - 3, -128, 127)
    np.testing.assert_array_equal(held, steps.transpose(0, 2, 3, 1))
    back = verify_script.as_model(held, PICTURE.as_json())
    np.testing.assert_allclose(back, values, atol=0.0101)
    blob = replace(PICTURE, shape=(3, 32, 24), axes=(1, 2, 3), type="float32", scale=None, zero_point=None)
    held = verify_script.as_file(values, blob.as_json())
    np.testing.assert_array_equal(held, values[0])
    np.testing.assert_array_equal(verify_script.as_model(held, blob.as_json()), values)
    with pytest.raises(verify_script.VerifyError, match="has 2 dimensions, not 3"):
        verify_script.as_model(held[0], blob.as_json())


def test_a_scalar_and_whole_numbers() -> None:
    one = Port("n", "n", (), "int32", (), "int64", (), ())
    assert verify_script.as_file(np.array(7, np.int64), one.as_json()).dtype == np.int32
    assert verify_script.as_model(np.array([7], np.int32), one.as_json()).shape == ()


def test_errors_are_those_that_the_build_measures() -> None:
    """The script cannot import Lathe: the two are held alike here."""
    generator = np.random.default_rng(1)
    wanted = generator.standard_normal((2, 5)).astype(np.float32)
    cases = [
        wanted + np.float32(1e-3),
        wanted,
        wanted[:1],
        np.where(wanted > 0, np.nan, wanted),
        wanted * 1e-5,
    ]
    for floor in (0.0, 3.0):
        for measure, built in (("largest", distances.largest), ("length", distances.relative)):
            said = {"measure": measure, "floor": floor}
            for case in cases:
                assert verify_script.error_of(case, wanted, said) == built(case, wanted, floor)
    whole = np.arange(4)
    assert verify_script.error_of(np.array([0, 1, 2, 4]), whole, {"measure": "largest", "floor": 0.0}) == 0.25


def test_examples_that_are_too_large_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [({"image": np.zeros((1, 3, 32, 24), np.float32)}, {"scores": np.zeros((1, 10), np.float32)})]
    stored = Examples(calls, "largest", {"scores": 1e-4}, {})
    path = tmp_path / "model.examples.npz"
    monkeypatch.setattr("onnx_lathe.runtime.targets.bundle.examples.LARGEST_BYTES", 100)
    assert write_examples(path, [PICTURE], [SCORES], stored) is None
    assert not path.exists()
    monkeypatch.undo()
    found = write_examples(path, [PICTURE], [SCORES], stored)
    jsonschema.validate(json.loads(json.dumps(described(tmp_path, examples=found))), SCHEMA)


def test_the_script_refuses_what_is_no_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "model.json"
    for text, reason in (
        ("{", "is no description"),
        ('{"format": 1}', "has format 1, this script reads 2"),
        ('{"format": 2, "examples": null}', "no inputs and outputs are stored"),
        ("[]", "is no description"),
    ):
        table.write_text(text)
        assert verify_script.main([str(table)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    assert verify_script.main([str(tmp_path / "absent.json")]) == 2


def test_names_of_folders_of_pictures_reach_the_description_and_the_examples(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    text = """(float[N, 3, 8, 8] image) => (float[N, 2] scores) {
        a = Conv <pads = [1, 1, 1, 1]> (image, v)  g = GlobalAveragePool(a)  scores = Flatten(g) }"""
    onnx.save(build(text, v=random(2, 3, 3, 3)), tmp_path / "net.onnx")
    for name in ("cat", 'd"o|g'):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for place in range(6):
            pixels = np.random.default_rng(place).integers(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{place}.png")
    data = ["--eval", str(tmp_path / "pictures"), "--preprocess", "scale=1/255", "--no-latency", "--no-html"]
    run = [str(tmp_path / "net.onnx"), "--passes", "fold", *data, "--quiet", "--out", str(tmp_path / "out")]
    assert main([*run, "--target", "ncnn"]) == 0
    found = json.loads((tmp_path / "out" / "model.ncnn.json").read_text())
    assert found["classes"] == ["cat", 'd"o¦g']
    assert '    "d\\042o\\302\\246g",\n' in (tmp_path / "out" / "model.ncnn.example.cpp").read_text()
    assert main([*run, "--target", "ncnn(classes=a|b)", "--force"]) == 0
    assert json.loads((tmp_path / "out" / "model.ncnn.json").read_text())["classes"] == ["a", "b"]
