"""docs/parallel-rules.md says what the code does."""

import runpy

import pytest

from onnx_lathe.runtime.torch_bridge.registry import operators
from tests.support.house import ROOT


def test_the_list_of_rules_is_that_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "parallel_rules.py"), run_name="imported")
    written = script["DOCUMENT"].read_text(encoding="utf-8")
    if written != script["document"]():
        pytest.fail(f"docs/parallel-rules.md is not what the code does now; run: {script['COMMAND']}")
    assert all(f"`{name}`" in written for domain, name in operators() if not domain)
