"""A model whose outputs are constants: `check` foretells that ncnn builds none, and `build` says why in one line."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import build, check
from onnx_lathe.errors import TargetError
from tests.support import builders

pytest.importorskip("ncnn")


def test_it_is_refused_before_ncnn_runs_it(tmp_path: Path) -> None:
    model = builders.build("() => (float[3] y) { y = Relu (w) }", w=np.array([-1, 0, 2], np.float32))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(TargetError, match="the model has no inputs, and ncnn runs nothing without"):
        check(path, "ncnn")
    record = build(path, "ncnn", tmp_path / "out")
    assert "the model has no inputs" in (record.targets[0].error or "")
    assert not list((tmp_path / "out").glob("*.param"))
