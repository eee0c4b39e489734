"""That the stand-in of TensorRT has no name which the real bindings lack."""

import ast
from pathlib import Path

import pytest

from tests.support import gpu

CLASSES = {
    "Runtime": "Runtime",
    "_Engine": "ICudaEngine",
    "_Context": "IExecutionContext",
    "_Inspector": "EngineInspector",
    "Builder": "Builder",
    "_Network": "INetworkDefinition",
    "_Profile": "IOptimizationProfile",
    "_Config": "IBuilderConfig",
    "OnnxParser": "OnnxParser",
}
"""Of the stand-in -> of TensorRT."""
ENUMERATIONS = ("DataType", "TensorIOMode", "LayerInformationFormat", "ProfilingVerbosity", "BuilderFlag")
SOURCE = (gpu.FOLDER / "fake_tensorrt" / "__init__.py").read_text(encoding="utf-8")


def names(part: ast.ClassDef) -> set[str]:
    """Methods and attributes of a class that are not its own affair."""
    found = {one.name for one in part.body if isinstance(one, ast.FunctionDef)}
    for one in part.body:
        if isinstance(one, ast.Assign):
            found |= {target.id for target in one.targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("ours, theirs", CLASSES.items())
def test_methods_are_tensorrts(ours: str, theirs: str) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    parts = {one.name: one for one in ast.parse(SOURCE).body if isinstance(one, ast.ClassDef)}
    assert names(parts[ours])
    assert not {name for name in names(parts[ours]) if not hasattr(getattr(real, theirs), name)}


def test_members_are_tensorrts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    if reason := gpu.missing():
        pytest.skip(reason)
    machine = gpu.Machine(tmp_path, monkeypatch)
    said = machine.python(
        "tensorrt", "10.13.3.9", f"{{name: list(getattr(trt, name).__members__) for name in {ENUMERATIONS}}}"
    )
    for name, members in said.items():
        lacking = set(members) - set(getattr(real, name).__members__)
        assert lacking <= ({"FP16", "INT8"} if name == "BuilderFlag" else set())  # of TensorRT 10 alone
