"""docs/ncnn-operators.md says what the code does."""

import runpy

import pytest

from onnx_lathe.runtime.targets.ncnn.registry import operators
from tests.support.house import ROOT


def test_the_list_of_operators_is_that_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "ncnn_operators.py"), run_name="imported")
    written = script["DOCUMENT"].read_text(encoding="utf-8")
    if written != script["document"]():
        pytest.fail(f"docs/ncnn-operators.md is not what the code does now; run: {script['COMMAND']}")
    assert all(f"`{name}`" in written for domain, name in operators() if not domain)
