"""The process that loads a model first: what it survives, what it does not, and what a run says of it."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_lathe
from onnx_lathe import ContractError, ExitCode, Graph, ModelError, Pass, PassReport, rewrite
from onnx_lathe.errors import CrashError
from onnx_lathe.optimizer import api, opening
from onnx_lathe.optimizer import lowering as lowering_module
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.loading import preparing
from onnx_lathe.runtime.data import InputSpec, open_source
from onnx_lathe.runtime.files import hashing
from onnx_lathe.runtime.pack import pack
from onnx_lathe.runtime.running import guard, guard_worker, ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.evaluate import OutputComparer
from onnx_lathe.runtime.running.profiling import ModelProfiler
from onnx_lathe.runtime.running.settings import PLAIN, Settings
from onnx_lathe.runtime.targets.core.registry import find
from tests.support.builders import build, random

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard whose child dies of models with a Round in them."""
    monkeypatch.setattr(guard, "WORKER", "tests.support.dying_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())


def model(op: str) -> onnx.ModelProto:
    return build(f"(float[N,3] x) => (float[N,4] y) {{ h = MatMul(x, w) y = {op}(h) }}", w=random(3, 4))


DATA = open_source({"x": random(4, 3)}, [InputSpec("x", np.dtype(np.float32), (None, 3))])


def content(op: str) -> bytes:
    return model(op).SerializeToString()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the child is asked to load, one entry per model: how."""
    found: list[Settings] = []
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())
    whole = guard._Guard._asked

    def asking(self: guard._Guard, source: bytes | str, settings: Settings) -> str | None:
        found.append(settings)
        return whole(self, source, settings)

    monkeypatch.setattr(guard._Guard, "_asked", asking)
    return found


def starting(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> Path:
    """A guard whose child runs this code before it is ready, with `starts`, a file; returns the file."""
    starts = folder / "starts"
    body = f"import os, pathlib, signal\nfrom onnx_lathe.runtime.running import guard_worker\nstarts = pathlib.Path({str(starts)!r})\n"
    (folder / "starting_worker.py").write_text(f"{body}{code}\nguard_worker.main()\n")
    starts.write_text("")
    monkeypatch.setattr(guard, "WORKER", "starting_worker")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *(path for path in sys.path if path)]))
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())
    return starts


COUNTED = "starts.write_text(starts.read_text() + 's')\n"


def test_a_child_that_ends_before_it_is_ready_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = COUNTED + "if starts.read_text() == 's': os.kill(os.getpid(), signal.SIGTERM)"
    starts = starting(monkeypatch, tmp_path, first)
    assert guard.crash(content("Relu"), PLAIN) is None
    assert starts.read_text() == "ss"
    assert len(guard._GUARD._known) == 1


@pytest.mark.parametrize(
    "end, how",
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "lack of memory"),
        ("os._exit(3)", "exit code 0x3"),
    ],
)
def test_a_child_that_is_never_ready_says_nothing_of_the_model(
    end: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = starting(monkeypatch, tmp_path, COUNTED + end)
    with pytest.warns(RuntimeWarning, match=f"it ended before it was ready: .*{how}"):
        assert guard.crash(content("Relu"), PLAIN) is None
    assert starts.read_text() == "ss"
    assert not guard._GUARD._known


def test_a_child_that_the_system_ends_twice_lacked_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = COUNTED + "guard_worker._load = lambda *given: os.kill(os.getpid(), signal.SIGKILL)"
    starts = starting(monkeypatch, tmp_path, killed)
    with pytest.raises(
        CrashError, match=r"cannot load the model: the system ended it \(SIGKILL\), likely for lack of memory"
    ) as error:
        ort.plain_session(model("Relu"))
    assert "crashes" not in str(error.value)
    assert starts.read_text() == "ss"
    assert not guard._GUARD._known


def test_what_onnx_runtime_loads_or_refuses_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Relu"), path)
    assert guard.crash(str(path), PLAIN) is None
    assert guard.crash(content("Relu"), PLAIN) is None
    for wrong in (b"no model", b""):
        path.write_bytes(wrong)
        assert guard.crash(str(path), PLAIN) is None
        assert guard.crash(wrong, PLAIN) is None
    assert guard.crash(str(tmp_path / "missing.onnx"), PLAIN) is None


@pytest.mark.usefixtures("dying")
def test_the_signal_is_named_and_the_next_model_gets_a_new_child(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Round"), path)
    assert guard.crash(str(path), PLAIN) == "SIGSEGV"
    assert guard.crash(content("Relu"), PLAIN) is None
    assert guard.crash(content("Round"), Settings("ORT_DISABLE_ALL")) == "SIGSEGV"


def test_the_child_is_asked_once_for_a_model_and_a_way_of_opening_it(
    asked: list[Settings], tmp_path: Path
) -> None:
    path, relu = tmp_path / "model.onnx", content("Relu")
    path.write_bytes(relu)
    for source in (relu, str(path), relu):
        assert guard.crash(source, PLAIN) is None
    assert asked == [PLAIN]
    unoptimized = Settings("ORT_DISABLE_ALL")
    guard.crash(relu, unoptimized)
    guard.crash(content("Sigmoid"), PLAIN)
    assert asked == [PLAIN, unoptimized, PLAIN]


def test_equal_files_with_data_of_their_own_are_two_models(asked: list[Settings], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.onnx"
        onnx.save(model("Relu"), path, save_as_external_data=True, location="data", size_threshold=0)
        assert guard.crash(str(path), PLAIN) is None
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()
    assert len(asked) == 2


@pytest.mark.parametrize("location", ["data", "a" * 150], ids=["short", "long"])
def test_data_beside_a_file_that_is_written_again_makes_another_model(
    location: str, asked: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "settled", lambda found: True)
    path, data = tmp_path / "model.onnx", tmp_path / location
    onnx.save(model("Relu"), path, save_as_external_data=True, location=location, size_threshold=0)
    for _ in range(2):
        assert guard.crash(str(path), PLAIN) is None
    assert len(asked) == 1
    changed, before = random(3, 4).tobytes(), data.stat()
    assert len(changed) == before.st_size
    data.write_bytes(changed)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # clocks of file systems are coarse
    assert guard.crash(str(path), PLAIN) is None
    assert len(asked) == 2
    data.unlink()
    assert guard.crash(str(path), PLAIN) is None
    assert len(asked) == 3


def test_the_child_opens_a_model_as_the_caller_will() -> None:
    loaded: list[tuple[int, list[str], str]] = []

    class Session:
        def __init__(self, source: object, options: onnxruntime.SessionOptions, **rest: list[str]) -> None:
            entry = options.get_session_config_entry("session.x64quantprecision")
            loaded.append((int(options.graph_optimization_level), rest["disabled_optimizers"], entry))

    settings = Settings("ORT_ENABLE_EXTENDED", (("session.x64quantprecision", "1"),), ("One",), True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Session)
        guard_worker._load(b"", Settings(**json.loads(json.dumps(asdict(settings)))))
    assert loaded == [(int(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED), ["One"], "1")]


WAYS: dict[str, Callable[[onnx.ModelProto, Path], object]] = {
    "session": lambda model, path: ort.session(model),
    "without optimizers": lambda model, path: ort.session(path, optimized=False),
    "plain session": lambda model, path: ort.plain_session(model),
    "as opened": lambda model, path: ort.as_opened(path),
    "written": lambda model, path: ort.write_optimized(path, path.with_name("written.onnx")),
    "layers of the target ort": lambda model, path: find("ort")().layers(model),
    "timer": lambda model, path: ort.PairTimer().latencies(model, model),
    "evaluator": lambda model, path: ort.OneTimeEvaluator().evaluate(model, {}),
    "profile": lambda model, path: profiler().profile(model),
    "profiler's latencies": lambda model, path: profiler().latencies(model, model),
    "calibrator": lambda model, path: StreamingCalibrator(DATA).statistics(model, ["h"]),
    "comparer": lambda model, path: OutputComparer(DATA, 4).compare(model, model),
    "packed": lambda model, path: ort.session(packed(model, path)),
    "gate": lambda model, path: onnx_lathe.gate(packed(model, path), path, "sqnr >= 10"),
}


def packed(model: onnx.ModelProto, path: Path) -> Path:
    made = path.with_name("model.lathe")
    made.write_bytes(pack(model.SerializeToString()))
    return made


def profiler() -> ModelProfiler:
    return ModelProfiler(ort.random_feeds)


@pytest.mark.usefixtures("dying")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_session_asks_the_child_first(way: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Round"), path)
    with pytest.raises(CrashError, match=r"ONNX Runtime [\d.]+ crashes \(SIGSEGV\)"):
        WAYS[way](model("Round"), path)


@pytest.mark.usefixtures("dying")
def test_a_model_that_is_only_opened_is_not_tried() -> None:
    assert onnx_lathe.open(model("Round")).get_inputs()[0].name == "x"


def test_without_a_child_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_GUARD", guard._Guard())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.warns(RuntimeWarning, match="/nowhere/python cannot be started"):
        assert guard.crash(content("Relu"), PLAIN) is None


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


class Trying(Pass):
    """Times a Round, of which the dying child dies, and writes nothing."""

    name = "trying"

    def apply(self, graph: Graph, context: Context) -> PassReport:
        context.need_timer().latencies(model("Relu"), model("Round"))
        return PassReport()


@pytest.mark.usefixtures("dying")
def test_what_a_pass_tries_ends_the_run_with_the_step_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Relu"), path)
    with pytest.raises(
        ContractError, match=r"step 2, trying: ONNX Runtime .*SIGSEGV.* tries; leave trying out"
    ):
        api.optimize(path, ["fold", Trying()], out=tmp_path / "out", latency=False)
    with pytest.raises(ContractError, match=r"trying: ONNX Runtime .*SIGSEGV"):
        rewrite(model("Relu"), Trying())


@pytest.mark.usefixtures("dying")
@pytest.mark.parametrize("trial", [False, True], ids=["written", "tried"])
def test_a_lowering_that_crashes_names_the_target(
    trial: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Relu"), path)
    work: Pass = Trying() if trial else Rounding()
    monkeypatch.setattr(lowering_module, "configure", lambda *given: work)
    with pytest.raises(ContractError, match=r"target ort: ONNX Runtime .*SIGSEGV.*; leave ort out") as error:
        api.optimize(path, "fold", targets="ort", out=tmp_path / "out", latency=False)
    assert error.value.exit_code == ExitCode.DEFECT


@pytest.mark.usefixtures("dying")
def test_check_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model("Relu"), path)
    monkeypatch.setattr(lowering_module, "configure", lambda *given: Rounding())
    with pytest.raises(ContractError, match=r"SIGSEGV.*as target ort wants it; leave ort out"):
        api.check(path, "ort")


@pytest.mark.usefixtures("dying")
def test_a_model_that_crashes_once_rewritten_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(given: onnx.ModelProto, wishes: object) -> preparing.Prepared:
        given.graph.node[-1].op_type = "Round"
        return preparing.Prepared(["written anew"], True)

    path = tmp_path / "model.onnx"
    onnx.save(model("Relu"), path)
    monkeypatch.setattr(opening, "prepare", prepared)
    with pytest.raises(ModelError, match=r"written anew: ONNX Runtime .*SIGSEGV"):
        api.optimize(path, "fold", out=tmp_path / "out", latency=False)


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
