"""What lies beside an .mlpackage: its Swift and README hold the network's own values. No Mac compiles them here."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from onnx_lathe.runtime.targets.bundle import verify_script
from onnx_lathe.runtime.targets.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.bundle.writing import Written
from onnx_lathe.runtime.targets.coreml.bundle import swift
from onnx_lathe.runtime.targets.coreml.bundle.writing import bundle
from tests.support.house import ROOT

IMAGE = Port(
    "image", "image", (1, 3, 8, 6), "float32", (0, 1, 2, 3), "float32", (1, 3, 8, 6), (None, 3, 8, 6)
)
STATE = Port("state\\(0)", "state_0", (1, 4), "int32", (0, 1), "int64", (1, 4), (None, 4))
SCHEMA = json.loads((ROOT / "docs" / "model.schema.json").read_text())


def test_all_files_are_there_and_name_this_network(tmp_path: Path) -> None:
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    pixels = pixels_of("mean=1,2,3 std=4,5,8 resize=9 crop=8x6", [IMAGE])
    made = bundle(Written("coreml", [package], [IMAGE], [STATE], pixels, {}, ['c"a\\t']), "iOS16")
    assert {path.name for path in made} == {f"model.coreml.{name}" for name in ("json", "swift", "README.md")}
    jsonschema.validate(json.loads((tmp_path / "model.coreml.json").read_text()), SCHEMA)
    text = (tmp_path / "model.coreml.swift").read_text()
    assert 'static let model = "model"' in text
    assert 'Port(name: "image", sizes: [1, 3, 8, 6], type: .float32) /* image */' in text
    assert 'Port(name: "state_0", sizes: [1, 4], type: .int32) /* state/(0) */' in text
    assert '"c\\u{22}a\\u{5c}t",' in text
    assert "let norm: [Float] = [0.25, 0.2, 0.125]" in text
    assert "values[2 * rows * columns + at] = (blue - mean[2]) * norm[2]" in text
    assert "let rows = 8, columns = 6" in text
    readme = (tmp_path / "model.coreml.README.md").read_text()
    assert "It needs iOS 16 or macOS 13." in readme
    assert "it was not run: that needs a Mac" in readme
    assert "verify.py" not in readme


@pytest.mark.parametrize(
    "preprocess", ["", "scale=1", "scale=1 resize=9 crop=8x6", "scale=1 resize=16x12 crop=8x6"]
)
def test_swift_has_pairs_of_brackets_and_no_placeholder_left(preprocess: str) -> None:
    made = swift.example("t", "m.mlpackage", [IMAGE], [STATE], ["a}"], pixels_of(preprocess, [IMAGE]))
    assert not re.search(r"@[a-z]+\b", made)
    bare = re.sub(r'"[^"\n]*"|/\*.*?\*/|//[^\n]*', "", made, flags=re.DOTALL)
    stack = []
    for one in re.findall(r"[(){}\[\]]", bare):
        if one in "({[":
            stack.append(one)
        else:
            assert (stack.pop(), one) in (("(", ")"), ("{", "}"), ("[", "]"))
    assert not stack


def test_a_type_that_core_ml_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'image' holds int8, and Core ML has no such input or output"):
        swift.example("t", "m.mlpackage", [replace(IMAGE, type="int8")], [STATE], [], "none")


def test_the_script_says_that_core_ml_needs_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(verify_script.VerifyError, match="Core ML runs on a Mac alone"):
        verify_script.coreml(tmp_path / "model.mlpackage", {}, 1)
