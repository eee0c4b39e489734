"""`optimize search`: opens the study, starts from sensitivity, tries until the time is up, and judges the winner."""

import pickle
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx_lathe.errors import ExitCode, LatheError, UsageError
from onnx_lathe.optimizer import pipeline, surroundings
from onnx_lathe.optimizer.claim import claimed
from onnx_lathe.optimizer.reporting import write_record
from onnx_lathe.optimizer.run import Request
from onnx_lathe.optimizer.search import confirming, worker
from onnx_lathe.optimizer.search.allocated import allocated
from onnx_lathe.optimizer.search.bench import Outcome
from onnx_lathe.optimizer.search.clock import Clock, OutOfTimeError
from onnx_lathe.optimizer.search.folder import BEST, RECIPE, RECORD, STUDY, begin, check_out, erase_winner
from onnx_lathe.optimizer.search.judging import quality_name, unspread
from onnx_lathe.optimizer.search.loop import Loop
from onnx_lathe.optimizer.search.naming import MOST_STAND_INS, Naming
from onnx_lathe.optimizer.search.proposals import Proposals, as_json, from_json
from onnx_lathe.optimizer.search.recipe_file import write_recipe
from onnx_lathe.optimizer.search.record import Choice, SearchRecord
from onnx_lathe.optimizer.search.request import Opened, SearchRequest, open_search
from onnx_lathe.optimizer.search.shrinkage import Shrinkage
from onnx_lathe.optimizer.search.space import Settings, shown
from onnx_lathe.optimizer.search.storage import (
    JOURNAL,
    Shared,
    Tried,
    best_of,
    front,
    open_storage,
    require_optuna,
)
from onnx_lathe.optimizer.search.table import measure_table
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.runtime import processes
from onnx_lathe.runtime.threads import limit, limited
from onnx_lathe.version import VERSION

CHILD_GRACE_S = 5.0
CONFIRMED = "lathe:confirmed"
BEST_CODER, BEST_CODER_S = 60.0, 60.0
"""How many times as long as the fast coder the best one takes on small files, and the most that it takes, about."""


def search(request: SearchRequest, ui: Ui) -> SearchRecord:
    """Searches, writes search.json and recipe.toml to `out`, and runs the winner's recipe into `out`/best. The
    record's exit code is that of the run, 3 if no trial passed, 130 after an interruption.

    Raises LatheError for a request that cannot run: nothing is written then, and an earlier search is still there.
    """
    started = time.time()
    require_optuna()
    request.check()
    own = request.out.absolute() / STUDY
    storage = request.storage or f"{JOURNAL}{own}"
    own_study = storage.startswith(JOURNAL) and Path(storage.removeprefix(JOURNAL)).absolute() == own
    clock = Clock(started + request.budget_s)
    cores = limit() or surroundings.cores()
    threads = request.threads or max(1, cores // request.jobs)
    request = replace(request, storage=storage, threads=threads)
    with ExitStack() as stack:
        claim = stack.enter_context(claimed(request.out, ui.note))
        earlier = check_out(request, claim)
        stack.enter_context(limited(threads if request.jobs > 1 else 0))
        try:
            opened = open_search(request, clock, ui.status, threads)
            reserve = _reserve(opened, time.time() - started)
        except OutOfTimeError as error:
            raise UsageError(
                f"--budget {request.budget_s:g}s: was spent before the first trial, on opening the model and on what is "
                "the same in every trial; give a longer one"
            ) from error
        shared_storage = open_storage(storage) if not own_study else None
        ui.note(opened.division.note)
        for note in request.notes:
            ui.note(f"warning: {note}")
        begin(request, earlier, claim)
        clock.reserve = reserve
        run = _Run(opened, ui, _record(opened, request))
        try:
            run.shared = Shared.open(
                shared_storage or open_storage(storage),
                opened.study_name,
                opened.bench.space,
                request.recipe.seed,
            )
            run.explore(clock)
            run.finish(clock)
        except KeyboardInterrupt:
            run.interrupted()
        except LatheError as error:
            run.record.end(error.exit_code)
            run.record.notes.append(str(error))
            raise
        finally:
            run.record.seconds = time.time() - started
            if run.shared is not None:
                run.record.write(request.out / RECORD)
        return run.record


class _Run:
    """One search, from its study to its record."""

    def __init__(self, opened: Opened, ui: Ui, record: SearchRecord) -> None:
        self.opened, self.request, self.ui, self.record = opened, opened.request, ui, record
        self.shared: Shared | None = None
        self.shrinkage = Shrinkage([], opened.bench)

    def explore(self, clock: Clock) -> None:
        """Sensitivity, the first settings, and trials until the time is up."""
        assert self.shared is not None
        bench, shared = self.opened.bench, self.shared
        earlier = len(shared.finished())
        if earlier:
            self.ui.note(f"going on after {earlier} trials of this search")
        self.ui.start(100)
        try:
            table = from_json(shared.noted(worker.TABLE) or {})
            with _children(self.request, clock, self.record.notes):
                starts = []
                if not earlier:
                    self.ui.step("allocations", 0)
                    starts = allocated(bench, clock, self.ui.status)
                if not table:
                    self.ui.step("sensitivity", 0)
                    table = measure_table(bench, clock, self.ui.status)
                    shared.note(worker.TABLE, as_json(table))
                if not earlier:
                    for settings in [*starts, *Proposals(bench.space, table, 0).starts()]:
                        shared.enqueue(settings)
                shared.note(worker.BEGUN, True)
                self.ui.step("trials", 0)
                Loop(
                    bench, shared, table, self.request.recipe.seed, self.request.trials, self._hear(clock)
                ).run()
        except OutOfTimeError:
            pass
        finally:
            self.ui.stop()

    def _hear(self, clock: Clock) -> Callable[[int, Tried | None], None]:
        def hear(count: int, best: Tried | None) -> None:
            told = f", best {best.outcome.ratio:.4f} of the original's" if best else ", none passes yet"
            self.ui.share(
                f"{count} trials{told}", int(self.request.budget_s - clock.left), int(self.request.budget_s)
            )

        return hear

    def finish(self, clock: Clock) -> None:
        """The winner, as its recipe has it, and its figures on the evaluation data."""
        tried = self._collect()
        winner = self._named(tried)
        clock.reserve = 0.0
        if winner is None:
            self.record.end(ExitCode.GATE_FAILED)
            erase_winner(self.request.out)
            return
        self._write(*winner)
        front_known = [Tried(0, *winner) if one.settings == winner[0] else one for one in tried]
        self.record.front = self._front(front_known)
        recipe = replace(self.request.recipe, steps=self.opened.bench.space.calls(winner[0]))
        asked = Request(
            self.request.model, recipe, self.request.out / BEST, measure_latency=self._times(), force=True,
            name=self.request.name, command=self.request.command,
        )  # fmt: skip
        with claimed(asked.out, self.ui.note) as claim:
            run = pipeline.run(asked, self.ui, claim)
            write_record(run, asked.out)
        self.record.final = {
            "baseline": run.baseline,
            "metrics": run.final(),
            "gates": [vars(gate) for gate in run.gates],
            "targets": [{"name": one.name, "files": one.files, "size_bytes": one.size_bytes, "error": one.error} for one in run.targets],
            "out": str(self.request.out / BEST),
        }  # fmt: skip
        self.record.end(ExitCode(run.exit_code))
        if run.exit_code == ExitCode.GATE_FAILED:
            self.record.notes.append(
                "the winner passed on the samples that settings are chosen on, and fails on the evaluation data: choose by a "
                "stricter gate, more samples or a larger --margin"
            )

    def interrupted(self) -> None:
        """The best so far, and its recipe."""
        self.record.end(ExitCode.INTERRUPTED)
        if self.record.winner is not None:
            self.record.notes.append(
                "interrupted while the winner was judged on evaluation data; the recipe is there, and --resume goes on"
            )
            return
        tried = self._collect() if self.shared is not None else []
        best = best_of(tried)
        if best is None:
            self.record.notes.append(f"interrupted: of {len(tried)} trials none has passed; --resume goes on")
            return
        self._write(best.settings, best.outcome)
        self.record.notes.append(
            f"interrupted after {len(tried)} trials: the recipe is the best so far, and not yet judged on evaluation data; --resume goes on"
        )

    def _times(self) -> bool:
        return self.request.latency and (
            "latency" in self.opened.bench.goal.counted or not self.request.recipe.gates
        )

    def _collect(self) -> list[Tried]:
        assert self.shared is not None
        tried = self.shared.finished()
        self.shrinkage = Shrinkage(tried, self.opened.bench)
        tried = self.shrinkage.all(tried)
        quality = self.record.quality
        self.record.trials = [
            {
                "number": one.number,
                "ratio": one.outcome.ratio,
                "quality": one.outcome.metrics.get(quality),
                "passed": one.outcome.passed and one.outcome.final,
                "stopped": one.outcome.stopped,
                "seconds": one.outcome.seconds,
                "process": one.process,
            }
            for one in tried
        ]
        self.record.front = self._front(tried)
        return tried

    def _front(self, tried: list[Tried]) -> list[Choice]:
        return [self._choice(one.settings, one.outcome) for one in front(tried, self.record.quality)]

    def _named(self, tried: list[Tried]) -> tuple[Settings, Outcome] | None:
        """The smallest that passes as its recipe has it, and again on samples that chose nothing."""
        bench = self.opened.bench
        bench.clock.reserve = -1e9  # the time for this was kept
        naming = Naming(self.opened, self.shrinkage, self.ui.status)
        naming.name(tried)
        self.record.notes += naming.notes
        if naming.confirmed is not None:
            self.record.confirmed = naming.confirmed | {"before": self._judged_before(naming.confirmed)}
        if naming.near is not None:
            self.record.nearest_miss = self._choice(*naming.near)
        return naming.winner

    def _judged_before(self, confirmed: dict[str, Any]) -> int:
        """How many candidates the samples that confirm had judged before this search went on: they are kept by the study, and
        each of them was a chance more for one that misses the gate.
        """
        assert self.shared is not None
        before = int(self.shared.noted(CONFIRMED) or 0)
        self.shared.note(CONFIRMED, before + confirmed["tried"])
        if before:
            self.record.notes.append(
                f"before this search went on, the {confirmed['samples']:,} samples that confirm had judged {before} of its "
                "candidates: one that misses the gate has had that many chances more; judge the winner by samples of its own"
            )
        return before

    def _choice(self, settings: Settings, outcome: Outcome) -> Choice:
        minimize = self.request.minimize
        return Choice(
            shown(settings, self.opened.bench.space),
            outcome.metrics.get(minimize, float("inf")),
            outcome.ratio,
            dict(outcome.metrics),
            outcome.passed and outcome.final,
            list(outcome.messages),
        )

    def _write(self, settings: Settings, outcome: Outcome) -> None:
        self.record.winner = self._choice(settings, outcome)
        recipe = replace(self.request.recipe, steps=self.opened.bench.space.calls(settings))
        path = self.request.out / RECIPE
        comments = [
            f"Found by optimize search, minimizing {self.request.minimize} under {'; '.join(recipe.gates)}.",
            self.opened.division.note[0].upper() + self.opened.division.note[1:] + ".",
        ]
        unsaid = write_recipe(path, recipe, comments)
        self.record.recipe = str(path)
        more = "".join(f" --{role} ..." for role in unsaid)
        self.record.reproduce = f"optimize {shlex.quote(str(self.request.model))} --recipe {shlex.quote(str(path))}{more} --out build"


def _record(opened: Opened, request: SearchRequest) -> SearchRecord:
    bench = opened.bench
    base = bench.judges[-1].base
    return SearchRecord(
        version=VERSION,
        command=list(request.command),
        model=request.name or str(request.model),
        minimize=request.minimize,
        gates=list(request.recipe.gates),
        quality=quality_name(base, bench.goal.gates),
        chosen_on=opened.division.note,
        study=opened.study_name,
        storage=request.storage.partition("://")[0] if "://" in request.storage else request.storage,
        original=bench.costs.base(request.minimize),
        base=dict(base),
        budget_s=request.budget_s,
        notes=[*request.notes, *_unspread(opened)],
    )


def _unspread(opened: Opened) -> list[str]:
    names = unspread(opened.bench.goal.gates) if opened.bench.goal.margin else []
    return [f"no margin applies to {', '.join(names)}, whose spread is not known"] if names else []


def _reserve(opened: Opened, opening_s: float) -> float:
    """Seconds that judging the winner will take: opening the model again, as many evaluations of the evaluation data
    as the run has models, and each candidate by its recipe, on the samples that choose and those that confirm. At most
    a third of the budget: more would leave no time to search.
    """
    request, bench = opened.request, opened.bench
    first, last = bench.judges[0], bench.judges[-1]
    began = time.perf_counter()
    first.measure(bench.base)
    per_sample = (time.perf_counter() - began) / max(1, first.data.count or 1)
    roles = opened.division.roles
    judged = (roles.evaluation.count if roles.evaluation is not None else 0) or 0
    models = len(request.recipe.steps) + 1
    confirmed = bench.goal.confirmers
    tried = 1 if bench.trains else confirming.MOST
    stand_ins = MOST_STAND_INS if bench.goal.foresees and not bench.trains else 0
    samples = judged * models + confirmed + (tried + stand_ins) * (last.data.count or 0) + tried * confirmed
    seconds = per_sample * samples + opening_s + models
    if "packed" in bench.goal.counted:
        began = time.perf_counter()
        bench.costs.of(bench.base, {"packed"})
        times = tried + any(target.name == "pack" for target in request.recipe.targets)
        seconds += times * min(BEST_CODER * (time.perf_counter() - began), BEST_CODER_S)
    return min(seconds, request.budget_s / 3)


@contextmanager
def _children(request: SearchRequest, clock: Clock, notes: list[str]) -> Iterator[None]:
    """The other processes of this search; they end with the block. Of one that failed, its reason is noted."""
    command = [sys.executable, "-m", "onnx_lathe.optimizer.search.worker"]
    started = []
    with ExitStack() as stack:
        for number in range(1, request.jobs):
            said = stack.enter_context(tempfile.TemporaryFile())
            child = stack.enter_context(
                processes.running(command, processes.environment(), grace_s=CHILD_GRACE_S, stderr=said)
            )
            assert child.process.stdin is not None
            pickle.dump((request, clock.ends, clock.reserve, number), child.process.stdin)
            child.process.stdin.flush()
            started.append((child.process, said))
        yield
        for process, said in started:
            if process.poll():
                said.seek(0)
                reason = said.read().decode(errors="replace").strip().splitlines()
                notes.append(
                    f"a process of the search ended early: {reason[-1] if reason else process.returncode}"
                )
