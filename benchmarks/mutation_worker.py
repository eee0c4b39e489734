"""The mutants of one module, each judged by the tests that reach its line. `mutation.py` starts this; see there.

    python benchmarks/mutation_worker.py MODULE RESULT.json --sample N --seed S -- TESTS
    python benchmarks/mutation_worker.py MODULE RESULT.json --one INDEX -- TESTS

pytest collects the tests once. Each mutant of a function then gets a fork of this process, in which the function has the
mutant's code: no import is repeated. What runs as the module is imported (constants, defaults of options) needs a process of
its own, which imports the changed module in place of the file's (`--one`). Nothing is written to the module's file.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from mutants import Mutant, found

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 4.0
"""Of tests that each mutant is given, by the processor's time without a fault, the quickest tests first."""
GRACE = 3.0
"""Seconds that a mutant may take more than four times what its tests take without it: then it hangs, and is found."""
MORE_MEMORY = 4 << 30


@dataclass
class Baseline:
    """Without a fault. `reached`: line of the module -> tests that run it; `seconds`: of each test that passes."""

    reached: dict[int, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def path_of(module: str) -> Path:
    """`onnx_lathe.optimizer.gate` -> optimizer/gate.py."""
    parts = module.split(".")[1:]
    return ROOT.joinpath(*parts).with_suffix(".py")


def mutated(module: str, index: int) -> CodeType:
    """The module's code with the fault of that index."""
    path = path_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found(tree)[index].apply()
    return compile(tree, str(path), "exec", dont_inherit=True)


def functions(code: CodeType) -> Iterator[CodeType]:
    """All code within, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from functions(constant)


def in_fork(work: Callable[[], object], seconds: float) -> tuple[str, Any]:
    """("passed", what it returns), ("failed", None) if it raises or dies, ("hung", None) if it takes longer: of the
    processor's time, or sixty times that and five minutes by the clock.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, resource.RLIM_INFINITY))
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            answer = pickle.dumps(work())
            with os.fdopen(writer, "wb") as stream:
                stream.write(answer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    alarm = signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, 60 * seconds + 300)  # a busy machine gives it little of a processor
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    status = os.waitpid(child, 0)[1]
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, alarm)
    if os.WIFSIGNALED(status):
        return ("hung" if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL) else "failed"), None
    return ("failed", None) if status else ("passed", pickle.loads(answer))


def passes(items: Sequence[pytest.Item]) -> bool:
    """Whether all of the tests pass; it stops at the first that does not."""
    from _pytest.runner import runtestprotocol

    for item, later in zip(items, [*items[1:], None], strict=True):
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=later)):
            return False
    return True


class Judge:
    """A plug-in of pytest: in place of running the tests it runs the mutants."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.module: str = arguments.module
        self.tree = ast.parse(path_of(self.module).read_text(encoding="utf-8"))
        self.mutants = found(self.tree)
        self.loaded: dict[tuple[str, int], list[FunctionType]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The module's functions, before conftest.py hides them from the collector's list."""
        file = importlib.import_module(self.module).__file__
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and one.__code__.co_filename == file:
                self.loaded.setdefault((one.__code__.co_name, one.__code__.co_firstlineno), []).append(one)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        by_name = {item.nodeid: item for item in session.items}
        state, baseline = in_fork(lambda: self.baseline(session.items), 3600.0)
        if state != "passed":
            raise pytest.UsageError(f"the tests of {self.module} {state} without a fault")
        chosen = list(range(len(self.mutants)))
        if 0 < self.arguments.sample < len(chosen):
            drawn = random.Random(f"{self.arguments.seed} {self.module}")
            chosen = drawn.sample(chosen, self.arguments.sample)
        chosen.sort(
            key=lambda index: (self.mutants[index].function is None, index)
        )  # what takes longest at the end
        results: list[dict[str, object]] = []
        self.write(baseline, results)
        for index in chosen:
            began = time.monotonic()
            mutant = self.mutants[index]
            state = self.judged(index, mutant, baseline, by_name)
            results.append(
                {
                    "index": index,
                    "line": mutant.lines.start,
                    "before": mutant.before,
                    "after": mutant.after,
                    "state": state,
                    "seconds": round(time.monotonic() - began, 2),
                }
            )
            self.write(baseline, results)  # what was found so far, if this is stopped
        return True

    def write(self, baseline: Baseline, results: list[dict[str, object]]) -> None:
        document = {
            "module": self.module,
            "mutants": len(self.mutants),
            "tests": len(baseline.seconds),
            "failed_without": baseline.failed,
            "results": results,
        }
        Path(self.arguments.result).write_text(json.dumps(document, indent=1), encoding="utf-8")

    def baseline(self, items: Sequence[pytest.Item]) -> Baseline:
        """One run of the tests without a fault."""
        import coverage

        path = str(path_of(self.module))
        measured = coverage.Coverage(data_file=None, include=[path], config_file=False)
        answer = Baseline()
        measured.start()
        for item in items:
            began = time.process_time()
            measured.switch_context(item.nodeid)
            good = passes([item])
            if good:
                answer.seconds[item.nodeid] = time.process_time() - began
            else:
                answer.failed.append(item.nodeid)
        measured.stop()
        for line, names in measured.get_data().contexts_by_lineno(path).items():
            answer.reached[line] = [name for name in names if name in answer.seconds]
        return answer

    def judged(self, index: int, mutant: Mutant, baseline: Baseline, items: dict[str, pytest.Item]) -> str:
        """killed, hung, survived, or unreached: no test runs its line."""
        if mutant.function is None or mutant.function not in self.loaded:
            return self.imported_anew(index)
        names = {name for line in mutant.lines for name in baseline.reached.get(line, ())}
        if not names:
            return "unreached"
        chosen, seconds = [], 0.0
        for name in sorted(names, key=baseline.seconds.__getitem__):
            seconds += baseline.seconds[name]
            if chosen and seconds > SECONDS:
                break
            chosen.append(items[name])

        def work() -> bool:
            code = mutated(self.module, index)
            new = next(one for one in functions(code) if (one.co_name, one.co_firstlineno) == mutant.function)
            for one in self.loaded[mutant.function]:
                one.__code__ = new
            return passes(chosen)

        state, answer = in_fork(work, 4 * seconds + GRACE)
        return {"hung": "hung", "failed": "killed"}.get(state) or ("survived" if answer else "killed")

    def imported_anew(self, index: int) -> str:
        command = [sys.executable, __file__, self.module, "-", "--one", str(index), "--"]
        try:
            done = subprocess.run(
                [*command, *self.arguments.tests], capture_output=True, timeout=3600, cwd=ROOT, check=False
            )
        except subprocess.TimeoutExpired:
            return "hung"
        return "survived" if done.returncode == 0 else "killed"


class Changed(importlib.machinery.SourceFileLoader):
    """Loads the module with one fault; `index` is set by `replace`."""

    index = 0

    def get_code(self, fullname: str) -> CodeType:
        return mutated(fullname, self.index)


def replace(module: str, index: int) -> None:
    """From here on the module is imported with its fault."""

    class Finder:
        @staticmethod
        def find_spec(
            name: str, path: Sequence[str] | None, target: ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            if name != module:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            if spec is not None and spec.origin is not None:
                spec.loader = Changed(name, spec.origin)
                spec.loader.index = index
            return spec

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("result")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=int)
    parser.add_argument("tests", nargs="+")
    arguments = parser.parse_args()
    import hypothesis

    # a mutant is slow for other reasons than a hanging test, and need not be made small
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutation", derandomize=True, deadline=None, phases=phases)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-profile=mutation"]
    with contextlib.chdir(ROOT):
        if arguments.one is not None:
            replace(arguments.module, arguments.one)
            # pytest would load the file itself, to say more of its asserts
            return int(pytest.main(["--assert=plain", *options, *arguments.tests]))
        judge = Judge(arguments)
        code = pytest.main([*options, *arguments.tests], plugins=[judge])
    return 0 if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else int(code)


if __name__ == "__main__":
    sys.exit(main())
