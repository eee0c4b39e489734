"""Files that are opened again: what is wrong is told by the name that was given."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert")

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.litert.contents import contents_of
from onnx_lathe.runtime.targets.litert.file import pack
from onnx_lathe.runtime.targets.litert.reopen import reopen
from tests.support.builders import build
from tests.support.litert import OPTIONS, written


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(ModelError, match=r"modle\.tflite: no such file; did you mean '.*model\.tflite'\?"):
        reopen(tmp_path / "modle.tflite", 1)


def test_what_litert_refuses_has_the_name_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteRT runs it elsewhere, by its whole path."""
    model = build("(float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }")
    found = written(model)
    contents = contents_of(model, found.conversion, OPTIONS)
    broken = replace(contents, operators=[replace(contents.operators[0], inputs=[9999])])
    (tmp_path / "broken.tflite").write_bytes(pack(broken))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refused:
        reopen(Path("broken.tflite"), 1)
    assert str(refused.value).startswith("broken.tflite: LiteRT cannot run it: ")
    assert "9999" in str(refused.value)
