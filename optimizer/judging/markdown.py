"""Verdicts as a table of Markdown, for a pull request or the summary of a step of GitHub Actions."""

from pathlib import Path

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
        f"`{_code(candidate.path)}` against `{_code(base.path)}`"
        + (f" on {judgement.samples:,} samples" if judgement.samples else ""),
        "",
        "| | gate | measured |",
        "|---|---|---|",
    ]
    for verdict in judgement:
        said = verdict.message.removeprefix(f"{verdict.gate}: ")
        lines.append(f"| {'✅' if verdict.passed else '❌'} | {_cell(verdict.gate)} | {_cell(said)} |")
    lines += ["", "| metric | base | candidate |", "|---|--:|--:|"]
    for name in _told(judgement):
        kind = known_metric(name).kind
        values = (shown(one.metrics[name], kind) if name in one.metrics else "" for one in (base, candidate))
        lines.append(f"| {_cell(name)} | {' | '.join(values)} |")
    by = "" if judgement.confidence is None else f"Judged by {percent(judgement.confidence)} intervals. "
    lines += ["", f"{by}{_cell(judgement.kernels)}."]
    lines += [f"- warning: {_cell(note)}" for note in judgement.notes]
    return "\n".join([*lines, ""])


def _told(judgement: Judgement) -> list[str]:
    """Metrics of whole models, Lathe's in their order and the user's behind."""
    both = {**judgement.base.metrics, **judgement.candidate.metrics}
    known = [name for name in METRICS if name in both]
    return known + [name for name in both if name not in METRICS and "[" not in name]


def _cell(text: str) -> str:
    """Text in a table, of which nothing is taken for Markdown's own."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'")
