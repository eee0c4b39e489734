"""Runs that are killed, find the disk full or read-only, lose children, or meet another run and a clock that goes back.

What passes: at every moment each file under a final name is whole, and is the one of an uninterrupted run (or of the run
before, which this one replaces); refusals are one line; `--resume`, or the same command where nothing was begun yet, ends
with every model, bit for bit, of the uninterrupted run, and leaves no unfinished file behind.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from torture_parts import Outcome, Request, failed, passed, skipped
from torture_parts._forked import Command
from torture_parts._pool import each
from torture_parts._runs import LIGHT, RUN_S, Bench, ended_after, finished, killing_at, resuming, whole
from torture_parts._spoiled import SPOILED, NotHereError

CASES = 250
LIMIT_S = 900.0
LIMITS = "Four cases of five kill the whole process group, up to three times before the run may end; the fifth is one of the others."
_BENCH: list[Bench] = []


def prepare(within: Path, light: bool = False) -> None:
    """Everything that a run imports, and the uninterrupted runs."""
    from onnx_lathe.optimizer import pipeline, reporting  # noqa: F401
    from onnx_lathe.optimizer.commands import compile as compiling  # noqa: F401
    from onnx_lathe.optimizer.report.html import document, page  # noqa: F401
    from onnx_lathe.passes.core.registry import all_passes
    from onnx_lathe.runtime.targets.core.registry import targets
    from onnx_lathe.runtime.training import TorchTrainer  # noqa: F401
    from onnx_lathe.runtime.training.loop import builtin  # noqa: F401

    all_passes()
    targets()
    _BENCH[:] = [Bench(Path(tempfile.mkdtemp(prefix="whole-", dir=within)), *(LIGHT if light else ()))]


def run(request: Request) -> Iterator[Outcome]:
    case = partial(interrupted, seed=request.seed, within=request.folder)
    ready = partial(prepare, request.folder)
    for done in each(case, ready, request.numbers, LIMIT_S, request.workers, start_s=3 * RUN_S):
        if done.fault:
            yield failed(done.number, done.fault)
        elif done.value.startswith("skipped: "):
            yield skipped(done.number, done.value.removeprefix("skipped: "))
        else:
            yield passed(done.number, done.value)


def interrupted(number: int, seed: int, within: Path) -> str:
    """Does a case and returns its kind. Raises AssertionError for what must not be."""
    random = np.random.default_rng([seed, number])
    bench = _BENCH[0]
    with tempfile.TemporaryDirectory(prefix=f"{number}-", dir=within) as folder:
        if number % 5 != 4:
            return killed(bench, random, Path(folder))
        name = list(SPOILED)[number // 5 % len(SPOILED)]
        try:
            return f"{name}: {SPOILED[name](bench, random, Path(folder))}"
        except NotHereError as reason:
            return f"skipped: {name}: {reason}"


def killed(bench: Bench, random: np.random.Generator, folder: Path) -> str:
    """Kills the run and those that resume it, then lets one end."""
    out, former = folder / "out", None
    if random.random() < 0.25:  # in place of another recipe's results
        former = bench.whole[0.5]
        ended = Command(bench.arguments(out, sparsity=0.5), folder).wait(RUN_S)
        assert ended.code == 0, ended.said[-600:]
    begun = ["--force"] if former else []
    more, kinds = begun, []
    for _ in range(int(random.integers(1, 4))):
        if random.random() < 0.5:
            kinds.append("at a change of a file")
            moment = int(random.integers(1, bench.changes + 1))
            ended = Command(bench.arguments(out, *more), folder, partial(killing_at, out, moment, None)).wait(
                RUN_S
            )
        else:
            kinds.append("at some time")
            ended = ended_after(Command(bench.arguments(out, *more), folder), random.random() * bench.cpu_s)
        assert ended.code in (-9, 0), f"exit code {ended.code}: {ended.said[-600:]}"
        whole(bench, out, former)
        more = resuming(bench, out, folder, begun)
    finished(bench, out, folder, more)
    return f"killed {len(kinds)} times" + (", over another run's results" if former else "")
