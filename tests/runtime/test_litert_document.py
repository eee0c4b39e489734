"""docs/litert-operators.md says what the code does, and no case of the onnx package gives another result."""

import runpy

import pytest

from onnx_lathe.runtime.targets.litert.registry import operators
from tests.support.house import ROOT

pytest.importorskip("ai_edge_litert")


def test_the_list_of_operators_is_that_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "litert_operators.py"), run_name="imported")
    known = (script["PASSES"], script["REFUSED"], script["OTHER_TYPE"])
    wrong = [f"{one.name}: {one.outcome}" for one in script["results"]() if one.outcome not in known]
    assert not wrong
    written = script["DOCUMENT"].read_text(encoding="utf-8")
    if written != script["document"]():
        pytest.fail(f"docs/litert-operators.md is not what the code does now; run: {script['COMMAND']}")
    assert all(f"`{name}`" in written for domain, name in operators() if not domain)
