"""Every benchmark and every model's script still starts: what it imports from Lathe is there."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.support.house import ROOT

SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "models").rglob("*.py")])

PLACES = {path.parent for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_script_imports_what_it_needs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    for folder in (path.parent, ROOT / "benchmarks", ROOT / "models"):
        monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    try:
        runpy.run_path(str(path), run_name="imported")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("onnx_lathe") or (ROOT / f"{error.name}.py").exists():
            raise
        pytest.skip(f"{error.name} is a peer that is not installed")
    finally:
        for name in set(sys.modules) - before:
            if _is_beside_a_script(sys.modules[name]):
                del sys.modules[name]


def _is_beside_a_script(module: object) -> bool:
    """Such as `trainer` of models/, `sets` of benchmarks/: other tests must not find it loaded."""
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(ROOT) and Path(file).parent in PLACES
