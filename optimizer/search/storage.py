"""Where a study lives: a journal file, or a database that several machines share. Everything of Optuna's that a
search opens is opened here.
"""

import importlib.util
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.report.record import plain
from onnx_lathe.optimizer.search.bench import Outcome
from onnx_lathe.optimizer.search.space import Settings, Space

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal:"
TRIES = 10
STALE_S = 30.0
"""A journal is locked for milliseconds; a lock as old as this was left by a process that was killed."""
BUSY = threading.RLock()
"""Held by this process while it reads or writes a study."""
_OUTCOME, _PROCESS = "lathe:outcome", "lathe:process"


def require_optuna() -> None:
    """Raises UsageError with the command that installs it."""
    if importlib.util.find_spec("optuna") is None:
        raise UsageError('a search needs Optuna: pip install "onnx-lathe[search]"')


def open_storage(text: str) -> Any:
    """Of "journal:FILE" or a URL of a database. Raises UsageError for another form, a missing driver, or a database
    that does not answer.
    """
    require_optuna()
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if text.startswith(JOURNAL):
        path = Path(text.removeprefix(JOURNAL))
        if not path.name:
            raise UsageError("--storage journal: names no file; write journal:FILE")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path = path.absolute()  # its lock is a link to it, which a relative path would lead astray
            _remove_stale(path)
            return JournalStorage(JournalFileBackend(str(path)))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path}: cannot be used as a journal ({_line(error)}); name another file"
            ) from error
    if "://" not in text:
        raise UsageError(
            f"--storage '{text}': write journal:FILE, or a URL such as postgresql://user@host/database"
        )
    try:
        return _patiently(lambda: RDBStorage(_with_driver(text), engine_kwargs={"pool_pre_ping": True}))
    except ImportError as error:
        raise UsageError(
            f"--storage {_safe(text)}: its driver is missing ({_line(error)}); for PostgreSQL: pip install psycopg2-binary"
        ) from error
    except Exception as error:
        raise UsageError(f"--storage {_safe(text)}: cannot be opened: {_line(error)}") from error


def _remove_stale(journal: Path) -> None:
    """Optuna waits for such a lock for ever if it leads nowhere."""
    lock = journal.with_name(f"{journal.name}.lock")
    with suppress(FileNotFoundError):
        if time.time() - lock.lstat().st_mtime > STALE_S:
            lock.unlink()


def end_between() -> None:
    """Ends this process, from another thread than the one that works, when no write is under way."""
    with BUSY:
        os._exit(0)


def _patiently(connect: Callable[[], Any]) -> Any:
    """Two processes that come to an empty database at once both make its tables, and one of them fails at that."""
    for _ in range(TRIES - 1):
        try:
            return connect()
        except Exception as error:
            if "exist" not in str(error) and "unique" not in str(error).lower():
                raise
            time.sleep(0.3)
    return connect()


def _with_driver(url: str) -> str:
    """SQLAlchemy 2.1 takes psycopg for PostgreSQL, where 2.0 took psycopg2: the one that is installed serves."""
    scheme, slashes, rest = url.partition("://")
    if scheme != "postgresql" or importlib.util.find_spec("psycopg") is not None:
        return url
    return f"postgresql+psycopg2{slashes}{rest}"


def _safe(url: str) -> str:
    """Without the password."""
    head, at, tail = url.rpartition("@")
    scheme, slashes, user = head.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}@{tail}" if at else url


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@dataclass
class Shared:
    """One study, as a process of the search sees it."""

    study: "optuna.Study"
    space: Space

    @classmethod
    def open(cls, storage: Any, name: str, space: Space, seed: int) -> "Shared":
        """The study of this name, made if it is not there. `seed`: another one for each process."""
        import optuna

        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=16, constant_liar=True)
        with BUSY:
            study = _patiently(
                lambda: optuna.create_study(
                    storage=storage,
                    study_name=name,
                    sampler=sampler,
                    load_if_exists=True,
                    direction="minimize",
                )
            )
        return cls(study, space)

    def note(self, key: str, value: Any) -> None:
        with BUSY:
            self.study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        return self.study.user_attrs.get(key)

    def enqueue(self, settings: Settings) -> None:
        with BUSY:
            self.study.enqueue_trial(self.space.parameters(settings), skip_if_exists=True)

    def ask(self) -> "tuple[optuna.Trial, dict[str, Any]]":
        with BUSY:
            trial = self.study.ask()
            return trial, self.space.suggest(trial)

    def tell(self, trial: "optuna.Trial", outcome: Outcome) -> None:
        """Stores what became of a trial; one that was not measured to the end is pruned."""
        import optuna

        value = min(outcome.value, 1e6)
        with BUSY:
            # The outcome last: it is what makes the trial visible to the other processes.
            trial.set_user_attr(_PROCESS, f"{platform.node()}:{os.getpid()}")
            trial.set_user_attr(_OUTCOME, json.dumps(plain(asdict(outcome))))
            if outcome.stopped:
                trial.report(value, outcome.looks)
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self.study.tell(trial, value)

    def give_up(self, trial: "optuna.Trial") -> None:
        """Of a trial that the end of the budget, or an interruption, cut off."""
        import optuna

        with BUSY:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def finished(self) -> "list[Tried]":
        """Every trial that has an outcome, of all processes, in order; of equal settings the first."""
        found = dict[str, Tried]()
        for trial in self.study.get_trials(deepcopy=False):
            text = trial.user_attrs.get(_OUTCOME)
            if text is not None and trial.params.keys() >= {one.name for one in self.space.dimensions}:
                settings = self.space.settings(trial.params)
                process = trial.user_attrs.get(_PROCESS, "")
                tried = Tried(trial.number, settings, _outcome(json.loads(text)), process)
                found.setdefault(tried.key, tried)
        return list(found.values())

    @property
    def waiting(self) -> int:
        """Trials that were enqueued, and that nobody has begun."""
        import optuna

        return len(self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))


@dataclass(frozen=True)
class Tried:
    number: int
    settings: Settings
    outcome: Outcome
    process: str = ""

    @property
    def key(self) -> str:
        """Equal for equal settings."""
        return repr(sorted(self.settings.items()))


def best_of(tried: Sequence[Tried]) -> Tried | None:
    """The smallest that passes on all samples; of several as small, the nearest to the original."""
    return next(iter(passing(tried)), None)


def passing(tried: Sequence[Tried]) -> list[Tried]:
    """Those that pass on all samples, the best first."""
    found = [one for one in tried if one.outcome.passed and one.outcome.final]
    return sorted(found, key=lambda one: (one.outcome.ratio, -one.outcome.metrics.get("sqnr", 0.0)))


def nearest_miss(tried: Sequence[Tried]) -> Tried | None:
    """Of those that miss a gate: of the ones that were looked at most, the nearest."""
    missed = [one for one in tried if not one.outcome.passed]
    return min(
        missed, key=lambda one: (-one.outcome.looks, one.outcome.missed, one.outcome.ratio), default=None
    )


def front(tried: Sequence[Tried], quality: str) -> list[Tried]:
    """Those that no other beats in both what is minimized and quality, the smallest first; of trials whose figures
    are of all samples.
    """
    known = [one for one in tried if one.outcome.final and quality in one.outcome.metrics]
    found: list[Tried] = []
    for one in sorted(known, key=lambda one: (one.outcome.ratio, -one.outcome.metrics[quality])):
        if not found or one.outcome.metrics[quality] > found[-1].outcome.metrics[quality]:
            found.append(one)
    return found


def _outcome(table: Mapping[str, Any]) -> Outcome:
    known = {**table, "ratio": float("inf") if table["ratio"] is None else table["ratio"]}
    metrics = {name: float("inf") if value is None else value for name, value in table["metrics"].items()}
    return Outcome(**{**known, "metrics": metrics, "messages": tuple(table["messages"])})
