"""What bundles of all targets share: ports, the description, literals, pixels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.runtime.targets.bundle import description
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
    with pytest.raises(ModelError, match="has format 1, this version of Lathe reads 2"):
        description.read(path, "model.mlpackage", "coreml")


def test_names_are_escaped_for_each_language() -> None:
    assert c_string('a"b\\?ä') == '"a\\042b\\134\\077\\303\\244"'
    assert kotlin_string('a"$b\\ä\U0001f600') == '"a\\u0022\\u0024b\\u005c\\u00e4\\ud83d\\ude00"'
    assert swift_string('a"\\(b)\nä') == '"a\\u{22}\\u{5c}(b)\\u{a}\\u{e4}"'
    assert comment("a*/b/*c\nd\\ä") == "a* /b/ *c d/?"
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
