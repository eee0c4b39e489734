"""What else goes wrong around a run: the disk, its children, the clock, another run.

Each function does one case and returns its kind; it raises AssertionError for what must not be, NotHereError for what cannot be
done here.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from torture_parts._forked import Command, Ended
from torture_parts._runs import (
    RUN_S,
    Bench,
    differences,
    ended_after,
    finished,
    refused,
    resuming,
    settled,
    whole,
)

LARGEST = 3 << 20
"""More bytes than a run's folder takes."""
LAUNCH = ("--launch", "--nproc-per-node=2")
LAUNCHED = {"passes": "fold, prune(sparsity=0.5), retrain(epochs=6, batch=20)", "targets": "onnx"}


class NotHereError(Exception):
    """Why a case cannot be done here."""


def disk_full(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """On a disk that is too small for the run, until it is made larger."""
    size = int(random.integers(40_000, LARGEST * 2))
    everywhere = bool(random.random() < 0.5)
    with mounted(folder / "disk", "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as disk:
        out = disk / "out"
        before = partial(_temporary, disk) if everywhere else lambda: None
        ended = Command(bench.arguments(out), folder, before).wait(RUN_S)
        if ended.code == 0:
            settled(bench, out)
            return "large enough"
        refused(ended, out, (2, 4))
        whole(bench, out)
        _mount("-o", f"remount,size={40 * LARGEST}", str(disk))
        finished(bench, out, folder, resuming(bench, out, folder, []))
    return "one line, then resumed"


def file_limit(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """No file may be larger than so many bytes, which ends a write as a full disk does."""
    most, out = int(random.integers(2_000, 1_300_000)), folder / "out"
    ended = Command(bench.arguments(out), folder, partial(_small_files, most)).wait(RUN_S)
    if ended.code == 0:
        settled(bench, out)
        return "large enough"
    refused(ended, out, (2, 4))
    whole(bench, out)
    finished(bench, out, folder, resuming(bench, out, folder, []))
    return "one line, then resumed"


def read_only(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """A folder on a disk that is mounted for reading, empty or with the results of another run; or below a file."""
    way = int(random.integers(3))
    if way == 0:
        (folder / "file").write_text("mine")
        refused(Command(bench.arguments(folder / "file" / "out"), folder).wait(RUN_S), folder)
        assert (folder / "file").read_text() == "mine"
        return "below a file"
    out = folder / "out"
    if way == 1:
        out.mkdir()
    else:
        shutil.copytree(bench.whole[0.8], out)
    with mounted(out, "--bind", str(out)):
        _mount("-o", "remount,bind,ro", str(out))
        refused(Command(bench.arguments(out), folder).wait(RUN_S), out)
    if way == 2:
        assert not differences(bench.whole[0.8], out)
        return "over results"
    assert not list(out.iterdir())
    return "empty"


def children_die(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """Some of the run's children are killed: what ONNX Runtime loads a model in first, or what builds for a target."""
    out, killed = folder / "out", 0
    command = Command(bench.arguments(out), folder)
    for moment in sorted(random.random(int(random.integers(1, 4))) * bench.cpu_s):
        command.reached(moment)
        while command.running() and not command.children():
            time.sleep(0.002)
        for child in command.children()[-1:] if command.running() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
                killed += 1
    ended = command.wait(RUN_S)
    if ended.code == 0:
        settled(bench, out)
        return "went on" if killed else "none was there"
    refused(ended, out, (2, 4))
    whole(bench, out)
    finished(bench, out, folder, resuming(bench, out, folder, []))
    return "one line, then resumed"


def clock_back(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """The clock of the process goes back all the while, and by a day between a run that is killed and the next."""
    out = folder / "out"
    back = partial(
        _backwards, float(random.choice([0.01, 1.0, 3600.0])), float(random.choice([0.0, 86400.0]))
    )
    first = ended_after(Command(bench.arguments(out), folder, back), random.random() * bench.cpu_s)
    assert first.code in (-9, 0), first.said[-600:]
    whole(bench, out)
    more = resuming(bench, out, folder, [])
    ended = Command(bench.arguments(out, *more), folder, partial(back.func, back.args[0], 86400.0)).wait(
        RUN_S
    )
    assert ended.code == 0, ended.said[-600:]
    settled(bench, out)
    return "resumed"


def two_at_once(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """A second run begins in the folder of one that is there: it is refused, and the first ends as if alone."""
    out, other = folder / "out", folder / "other"
    other.mkdir()
    first = Command(bench.arguments(out), folder)
    first.reached(random.random() * bench.cpu_s)
    while first.running() and not (out / "steps" / "run.json").exists():
        time.sleep(0.002)
    more = [[], ["--force"], ["--resume"]][int(random.integers(3))]
    sparsity = float(random.choice([0.5, 0.8]))
    second = Command(bench.arguments(out, *more, sparsity=sparsity), other)
    ended, whole_one = second.wait(RUN_S), first.wait(RUN_S)
    assert whole_one.code == 0, whole_one.said[-600:]
    if "another run" not in ended.said and _began_late(ended, sparsity, more):
        return "the first had ended"
    refused(ended, out)
    assert str(out) in ended.said
    assert "another run" in ended.said
    settled(bench, out)
    return "the second refused"


def _began_late(ended: Ended, sparsity: float, more: list[str]) -> bool:
    """Whether it ended as a run does after the first one's end."""
    return (ended.code == 0) if sparsity == 0.8 or more == ["--force"] else ended.code == 2


def worker_dies(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """One of two processes that train is killed."""
    expected = bench.folder / "launched"
    if not expected.exists():
        ended = Command(bench.arguments(expected, *LAUNCH, **LAUNCHED), folder).wait(RUN_S)
        assert ended.code == 0, ended.said[-600:]
    out = folder / "out"
    command = Command(bench.arguments(out, *LAUNCH, **LAUNCHED), folder)
    moment = float(random.random())
    while command.running():
        workers = [one for one in _below(command.number) if "parallel.worker" in _command_line(one)]
        if len(workers) >= 2:
            time.sleep(moment * 3)
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[int(random.integers(len(workers)))], signal.SIGKILL)
            break
        time.sleep(0.005)
    ended, kind = command.wait(RUN_S), "went on"
    if ended.code != 0:
        refused(ended, out)
        more = ["--resume"] if (out / "steps" / "run.json").exists() else []
        ended, kind = (
            Command(bench.arguments(out, *LAUNCH, *more, **LAUNCHED), folder).wait(RUN_S),
            "one line, then resumed",
        )
    assert ended.code == 0, ended.said[-600:]
    assert not (found := differences(expected, out)), f"after resuming: {found}"
    return kind


def _below(process: int) -> Iterator[int]:
    """All processes that it has begun, of whatever group."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _below(child)


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _temporary(folder: Path) -> None:
    """Temporary files go to this disk, too."""
    import tempfile

    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _small_files(most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _backwards(step_s: float, before_s: float) -> None:
    """Each look at the clock finds it `step_s` earlier than the last; it begins `before_s` ago."""
    now, lock = time.time() - before_s, threading.Lock()

    def earlier() -> float:
        nonlocal now
        with lock:
            now -= step_s
            return now

    time.time, time.time_ns = earlier, lambda: int(1e9 * earlier())


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Raises NotHereError where nothing can be mounted."""
    place.mkdir(exist_ok=True)
    try:
        _mount(*options, str(place))
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHereError(f"no right to mount a disk ({type(error).__name__})") from error
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


SPOILED = {
    "disk full": disk_full,
    "file limit": file_limit,
    "read-only": read_only,
    "children die": children_die,
    "clock back": clock_back,
    "two at once": two_at_once,
    "worker dies": worker_dies,
}
