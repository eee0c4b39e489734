"""The process that loads a model first: what it survives, what it does not, and what a run says of it."""

import os
import sys
from pathlib import Path

import onnx
import pytest

from onnx_lathe import ContractError, ExitCode, Graph, ModelError, Pass, PassReport, rewrite
from onnx_lathe.optimizer import api
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running import guard
from tests.support.builders import build, random

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard whose child dies of models with a Round in them."""
    monkeypatch.setattr(guard, "WORKER", "tests.support.dying_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())


def model(op: str) -> onnx.ModelProto:
    return build(f"(float[2,3] x) => (float[2,4] y) {{ h = MatMul(x, w) y = {op}(h) }}", w=random(3, 4))


def test_what_onnx_runtime_loads_or_refuses_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Relu"), path)
    assert guard.crash(path) is None
    assert guard.crash(model("Relu")) is None
    path.write_bytes(b"no model")
    assert guard.crash(path) is None
    assert guard.crash(tmp_path / "missing.onnx") is None


@pytest.mark.usefixtures("dying")
def test_the_signal_is_named_and_the_next_model_gets_a_new_child(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Round"), path)
    assert guard.crash(path) == "SIGSEGV"
    assert guard.crash(model("Relu")) is None
    assert guard.crash(model("Round")) == "SIGSEGV"


def test_without_a_child_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.warns(RuntimeWarning, match="/nowhere/python cannot be started"):
        assert guard.crash(model("Relu")) is None


class Rounding(Pass):
    """Writes a Round, of which the dying child dies."""

    name = "rounding"

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        graph.nodes[-1].op = "Round"
        report.edit(graph.nodes[-1].name, "rounds")
        return report


@pytest.mark.usefixtures("dying")
def test_a_run_ends_with_the_step_and_exit_code_1(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    onnx.save(model("Relu"), path)
    with pytest.raises(
        ContractError, match=r"step 2, rounding: ONNX Runtime .*SIGSEGV.*leave rounding out"
    ) as error:
        api.optimize(path, ["fold", Rounding()], out=out, latency=False)
    assert error.value.exit_code == ExitCode.DEFECT
    assert [file.name for file in (out / "steps").glob("*.onnx")] == ["01-fold.onnx"]
    assert not (out / "model.onnx").exists()


@pytest.mark.usefixtures("dying")
def test_in_memory_it_is_an_error_too() -> None:
    with pytest.raises(ContractError, match="SIGSEGV"):
        rewrite(model("Relu"), Rounding())


@pytest.mark.usefixtures("dying")
def test_a_model_that_crashes_as_it_came_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Round"), path)
    with pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime .* before any pass"):
        api.optimize(path, "fold", out=tmp_path / "out")


def test_the_child_ends_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = guard._Guard()
    monkeypatch.setattr(guard, "_GUARD", mine)
    guard.prepare()
    process = mine._process
    assert process is not None
    assert process.poll() is None
    mine._end()
    assert process.poll() is not None
