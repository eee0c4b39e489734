"""A run of several passes, trainings and targets, and what must hold of its output folder after whatever happened."""

import importlib
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torture_parts._forked import Command, Ended

RUN_S = 240.0
"""No run takes so long."""
PASSES = "fold, prune(sparsity={}), retrain(epochs=4, batch=50), codebook(bits=4), retrain(epochs=3, batch=50), int8"
TARGETS = "onnx, ort, pack(effort=fast), ncnn, jetson"
LIGHT = "fold, prune(sparsity={}), codebook(bits=4)", "onnx, pack(effort=fast)"
"""Passes and targets of a run without training, in a second."""
ROOT = Path(__file__).parents[2]
UNFINISHED = re.compile(r"(^|/)(\.building-|\.former-|\.lathe\.lock$)|\.tmp$|/placing\.json$")
"""Names of what is not a result yet."""
TOLD = {"report.json", "report.html", "steps/run.json", "steps/layers.json"}
"""Files with times in them."""
CHANGES = ("replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "fsync")


class Bench:
    """What all cases of a process share: the uninterrupted runs."""

    def __init__(self, folder: Path, passes: str = PASSES, targets: str = TARGETS) -> None:
        self.folder, self.passes, self.targets = folder, passes, targets
        self.data = folder / "data.npz"
        with np.load(ROOT / "models" / "mnist.npz") as arrays:
            shares = {"train": 200, "test": 100}
            parts = {
                f"{part}/{key}": arrays[f"{part}/{key}"][:count]
                for part, count in shares.items()
                for key in ("image", "labels")
            }
        np.savez(self.data, **parts)
        self.cpu_s, self.changes = 0.0, 0
        self.whole = {sparsity: self._uninterrupted(sparsity) for sparsity in (0.5, 0.8)}

    def arguments(
        self, out: Path, *more: object, sparsity: float = 0.8, passes: str = "", targets: str = ""
    ) -> list[object]:
        return [
            ROOT / "models" / "lenet300-mnist" / "model.onnx", "--passes", passes or self.passes.format(sparsity), "--train",
            f"{self.data}:train", "--eval", f"{self.data}:test", "--preprocess", "scale=1/255", "--target", targets or self.targets,
            "--no-latency", "--quiet", "--threads", 1, "--out", out, *more,
        ]  # fmt: skip

    def _uninterrupted(self, sparsity: float) -> Path:
        out, count = self.folder / f"whole-{sparsity}", self.folder / "count"
        modules = self.folder / "modules"
        command = Command(
            self.arguments(out, sparsity=sparsity),
            self.folder,
            partial(killing_at, out, 0, count),
            lambda: modules.write_text(json.dumps(sorted(sys.modules))),
        )
        ended = command.wait(RUN_S)
        assert ended.code == 0, ended.said[-600:]
        for module in json.loads(modules.read_text()):  # what it imported late, all that follow have at once
            with suppress(Exception):
                importlib.import_module(module)
        self.cpu_s, self.changes = ended.cpu_s, int(count.read_text())
        return out


def killing_at(out: Path, moment: int, count: Path | None) -> None:
    """Makes this process kill its group before or after its change number `moment` of files below `out` (twice the number,
    and one more for after); with `count`, writes there after each how many there were.
    """
    made = 0
    place = os.path.abspath(out)

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **named: Any) -> Any:
            nonlocal made
            ours = any(
                isinstance(one, int) or os.path.abspath(os.fsdecode(one)).startswith(place)
                for one in given[:2]
            )
            for after in (False, True):
                if after:
                    result = change(*given, **named)
                made += ours
                if ours and made == moment:
                    os.killpg(0, signal.SIGKILL)
            if count is not None:
                count.write_text(str(made))
            return result

        return done

    for name in CHANGES:
        setattr(os, name, watched(getattr(os, name)))


def differences(expected: Path, out: Path) -> list[str]:
    """Names of files that only one of the folders has, or that differ, but for what has times in it."""
    names = [_results(folder) for folder in (expected, out)]
    found = sorted(names[0] ^ names[1])
    both = sorted(names[0] & names[1] - TOLD)
    return found + [name for name in both if (expected / name).read_bytes() != (out / name).read_bytes()]


def _results(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return {name for name in names if not unfinished(name)}


def unfinished(name: str) -> bool:
    return UNFINISHED.search(name) is not None


def lesser(out: Path, sources: Sequence[Path]) -> str:
    """A file that is missing in a folder which is a result as a whole; nothing of it may be there without all of it."""
    for folder in sorted(out.glob("model.*/")):
        here = _results(folder)
        if not any(here == _results(one / folder.name) for one in sources if (one / folder.name).is_dir()):
            return f"something of {folder.name}, of which there is {sorted(here)[:5]},"
    return ""


def ended_after(command: Command, cpu_s: float) -> Ended:
    command.reached(cpu_s)
    command.kill()
    return command.wait(RUN_S)


def resuming(bench: Bench, out: Path, folder: Path, begun: list[str]) -> list[str]:
    """What the next command has to say: `--resume` once the run has begun in the folder, else the same again."""
    state = out / "steps" / "run.json"
    if not state.exists():
        return begun
    recipe = json.loads(state.read_text())["identity"]["recipe"]
    ours = json.loads((bench.whole[0.8] / "steps" / "run.json").read_text())["identity"]["recipe"]
    return ["--resume"] if recipe == ours else begun


def whole(bench: Bench, out: Path, former: Path | None = None) -> None:
    """Asserts that what is there is whole, whatever happened."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or unfinished(name):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "report.html":
            assert path.read_text().rstrip().endswith("</html>"), f"{name} is cut off"
        elif path.name == "training.state":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None, f"{name} is damaged"
        else:
            sources = [one / name for one in (bench.whole[0.8], former) if one is not None]
            assert any(one.is_file() for one in sources), f"{name} is there, which no whole run has"
            same = any(one.is_file() and one.read_bytes() == path.read_bytes() for one in sources)
            assert same, f"{name} is half-written, or of no whole run"
    if lost := lesser(out, [one for one in (bench.whole[0.8], former) if one is not None]):
        raise AssertionError(f"parts of a result: {lost} is missing")


def finished(bench: Bench, out: Path, folder: Path, more: list[str]) -> None:
    """Asserts that the run ends now, as if nothing had happened."""
    ended = Command(bench.arguments(out, *more), folder).wait(RUN_S)
    assert ended.code == 0, f"{more}: exit code {ended.code}: {ended.said[-600:]}"
    settled(bench, out)


def settled(bench: Bench, out: Path) -> None:
    whole(bench, out)
    assert not (found := differences(bench.whole[0.8], out)), f"after resuming: {found}"
    left = [path.name for path in out.rglob("*") if unfinished(path.relative_to(out).as_posix())]
    assert not left, f"left behind: {left}"


def refused(ended: Ended, out: Path, codes: tuple[int, ...] = (2,)) -> None:
    """Asserts that the command ended in one line, or of a target in its report's."""
    assert "Traceback" not in ended.said, f"traceback: {ended.said[-900:]}"
    assert ended.code in codes, f"exit code {ended.code}: {ended.said[-600:]}"
    lines = [line for line in ended.said.splitlines() if line.startswith("optimize: ")]
    assert ended.code == 4 or len(lines) == 1, f"{len(lines)} lines: {ended.said[-600:]}"
