"""Verdicts as a table of Markdown, for a pull request or the summary of a step of GitHub Actions."""

import re
from collections.abc import Sequence
from pathlib import Path

from onnx_lathe.errors import printable
from onnx_lathe.optimizer.judging.judgement import Judgement
from onnx_lathe.optimizer.judging.metrics import METRICS, known_metric
from onnx_lathe.optimizer.judging.numbers import percent, shown
from onnx_lathe.optimizer.judging.writing import write_summary


def write_markdown(judgement: Judgement, path: Path) -> None:
    """The summary of a step of GitHub Actions is added to, any other file written anew. Raises UsageError."""
    write_summary(path, markdown(judgement))


def markdown(judgement: Judgement) -> str:
    """The whole text."""
    missed = sum(not verdict.passed for verdict in judgement)
    count = f"{len(judgement)} gate{'' if len(judgement) == 1 else 's'}"
    title = f"{count} passed" if not missed else f"{missed} of {count} failed"
    base, candidate = judgement.base, judgement.candidate
    lines = [
        f"### Model gates: {title}",
        "",
        f"{code(candidate.path)} against {code(base.path)}"
        + (f" on {judgement.samples:,} samples" if judgement.samples else ""),
        "",
        "| | gate | measured |",
        "|---|---|---|",
    ]
    names = _names(judgement)
    for verdict in judgement:
        gate = printable(verdict.gate)
        said = verdict.message.removeprefix(f"{gate}: ")
        mark = "✅" if verdict.passed else "❌"
        lines.append(f"| {mark} | {code(gate)} | {cell(said, [gate, *names])} |")
    lines += ["", "| metric | base | candidate |", "|---|--:|--:|"]
    for name in _told(judgement):
        kind = known_metric(name).kind
        values = (shown(one.metrics[name], kind) if name in one.metrics else "" for one in (base, candidate))
        lines.append(f"| {cell(name)} | {' | '.join(values)} |")
    by = "" if judgement.confidence is None else f"Judged by {percent(judgement.confidence)} intervals. "
    lines += ["", f"{by}{cell(judgement.kernels)}."]
    lines += [f"- warning: {code(note)}" for note in judgement.notes]
    return "\n".join([*lines, ""])


def _told(judgement: Judgement) -> list[str]:
    """Metrics of whole models, Lathe's in their order and the user's behind."""
    both = {**judgement.base.metrics, **judgement.candidate.metrics}
    known = [name for name in METRICS if name in both]
    return known + [name for name in both if name not in METRICS and "[" not in name]


def _names(judgement: Judgement) -> list[str]:
    """What messages say of outputs, such as "[boxes]" or "[boxes][0:4]", the longest first: names of the models."""
    both = {**judgement.base.metrics, **judgement.candidate.metrics}
    return sorted({printable(key[key.index("[") :]) for key in both if "[" in key}, key=len, reverse=True)


def cell(text: str, names: Sequence[str] = ()) -> str:
    """Text in a table, of which nothing is taken for Markdown's own; `names` in it are code, lest they be links or
    mention people.
    """
    apart = "|".join(map(re.escape, names))
    parts = re.split(f"({apart})", text) if names else [text]
    return "".join(code(part) if place % 2 else _escaped(part) for place, part in enumerate(parts))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def code(text: str) -> str:
    """As a span of code; two marks that would end it, or the cell that it is in, become others that look alike."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '¦')}`"
