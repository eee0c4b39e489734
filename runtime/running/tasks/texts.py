"""Word and character error rates of texts, by jiwer: substitutions, deletions and insertions over what the label has.

Scores over symbols are read by CTC's best path: the likeliest symbol at each place, repeats once, without blanks. Graves
et al., "Connectionist Temporal Classification", ICML 2006, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.runtime.running.tasks.base import (
    POSTPROCESS,
    Answer,
    Collector,
    Task,
    fitting,
    labelled,
    largest,
)
from onnx_lathe.runtime.running.tasks.samples import Measured, quotient

FORM = "its text"
BLANK, SPACE = "<blank>", "<space>"
UNREADABLE = "\ufffd"
"""Of a place whose scores are not numbers."""


@dataclass(frozen=True)
class Symbols:
    """Of a model's scores, in their order; `blank` separates equal ones and is not written."""

    texts: tuple[str, ...]
    blank: int | None

    def places(self) -> tuple[int, ...]:
        """How many scores a place may have."""
        return (len(self.texts),) if self.blank is not None else (len(self.texts) + 1,)

    def read(self, scores: np.ndarray) -> str:
        """The text of scores [places, symbols]."""
        best = largest(scores)
        kept = best[np.flatnonzero(np.diff(best, prepend=-2))]
        blank = 0 if self.blank is None else self.blank
        texts = self.texts if self.blank is not None else (BLANK, *self.texts)
        return "".join(texts[symbol] if symbol >= 0 else UNREADABLE for symbol in kept if symbol != blank)


def read_symbols(path: str | Path) -> Symbols:
    """A file of one symbol a line. Raises UsageError for one that cannot be read or is empty."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--symbols {path}: cannot be read ({reason})") from error
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not lines or lines.count(BLANK) > 1:
        what = f"has {BLANK} twice" if lines else "is empty"
        raise UsageError(f"--symbols {path}: {what}; write one symbol a line, in the order of the scores")
    blank = lines.index(BLANK) if BLANK in lines else None
    return Symbols(tuple(" " if line == SPACE else line for line in lines), blank)


class ErrorRate(Task):
    """`wer` counts words, `cer` characters. `symbols`: of a model that gives scores over them."""

    def __init__(self, name: str, symbols: Symbols | None) -> None:
        self.name, self.symbols = name, symbols

    def start(self) -> Collector:
        return _Errors(self.name, self.symbols)


class _Errors(Collector):
    def __init__(self, name: str, symbols: Symbols | None) -> None:
        self.name, self.symbols = name, symbols
        self.rows: list[tuple[int, int]] = []
        """Of each sample: (errors, words or characters of the label)."""

    def add(self, answer: Answer, labels: Sequence[Any] | None) -> None:
        wanted = [self._text(label, "a label") for label in labelled(labels, self.name, FORM)]
        if answer.processed is None:
            given = self._texts(answer)
        else:
            given = [self._text(one, "what postprocess gives for a sample") for one in answer.processed]
        self.rows += [_errors(self.name, *pair) for pair in zip(wanted, given, strict=True)]

    def measured(self) -> dict[str, Measured]:
        rows = np.array(self.rows, np.float64).reshape(-1, 2)
        if rows[:, 1].sum() == 0:
            raise DataError(f"metric '{self.name}': all labels are empty texts; give some with words")
        return {self.name: quotient(rows[:, 0], rows[:, 1], reach=1)}

    def _texts(self, answer: Answer) -> list[str]:
        found: dict[str, list[str]] = {}
        for name, output in answer.outputs.items():
            if output.dtype.kind in "OU" and output.size == answer.count:
                found[name] = [self._text(one, f"output '{name}'") for one in output.reshape(-1)]
            elif self.symbols is not None and (scores := self._scores(output, answer)) is not None:
                found[name] = [self.symbols.read(one) for one in scores]
        wanted = "texts"
        if self.symbols is not None:
            wanted = f"[samples, places, {self.symbols.places()[0]}], scores over the symbols and CTC's blank"
        elif not found:
            wanted += " (--symbols FILE names the symbols of CTC's scores)"
        return found[fitting(found, answer, self.name, wanted)]

    def _scores(self, output: np.ndarray, answer: Answer) -> np.ndarray | None:
        """[samples, places, symbols] of an output that is so, or [places, samples, symbols]."""
        assert self.symbols is not None
        if not np.issubdtype(output.dtype, np.floating) or output.shape[-1:] not in [
            (size,) for size in self.symbols.places()
        ]:
            return None
        if output.ndim == 2 and answer.count == 1:
            return output[None]
        if output.ndim == 3 and len(output) == answer.count:
            return output
        if output.ndim == 3 and output.shape[1] == answer.count:
            return output.transpose(1, 0, 2)
        return None

    def _text(self, value: Any, what: str) -> str:
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if not isinstance(value, str):
            hint = f"; turn it into text by {POSTPROCESS}" if "label" not in what else ""
            raise DataError(f"metric '{self.name}': {what} is {type(value).__name__}, wanted is a text{hint}")
        return str(value)


def _errors(name: str, wanted: str, given: str) -> tuple[int, int]:
    jiwer = require_jiwer()
    if not wanted.strip():  # jiwer takes no empty label
        extra = len(given.split()) if name == "wer" else len(given)
        return extra, 0
    found = (jiwer.process_words if name == "wer" else jiwer.process_characters)(wanted, given)
    errors = found.substitutions + found.deletions + found.insertions
    return errors, found.substitutions + found.deletions + found.hits


def require_jiwer() -> Any:
    """Raises UsageError that says how to install it."""
    try:
        import jiwer
    except ImportError as error:
        raise UsageError('metrics wer and cer need jiwer: pip install "onnx-lathe[metrics]"') from error
    return jiwer
