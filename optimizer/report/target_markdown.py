"""The table of a run's targets as Markdown, for a pull request or the summary of a step of GitHub Actions."""

from pathlib import Path

from onnx_lathe.optimizer.judging.markdown import cell, code
from onnx_lathe.optimizer.judging.writing import write_summary
from onnx_lathe.optimizer.report.comparison import Comparison
from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.optimizer.report.target_table import cells, choice, columns, footnotes

NEEDS_SEVERAL = "--markdown writes the table of several targets; name two or more with --target"


def write_markdown(record: RunRecord, path: Path) -> None:
    """The summary of a step of GitHub Actions is added to, any other file written anew. Raises UsageError."""
    write_summary(path, markdown(record))


def markdown(record: RunRecord) -> str:
    """The whole text: the table, or why there is none."""
    title = f"### Targets of {code(str(record.model['path']))}: {record.outcome}"
    if record.comparison is not None:
        return "\n".join([title, "", *_table(record.comparison), ""])
    missed = [f"- {cell(verdict.message)}" for verdict in record.gates if not verdict.passed]
    return "\n".join([title, "", "No target was built.", "", *missed, ""])


def _table(found: Comparison) -> list[str]:
    titles = columns(found)
    sides = ["---", *["--:"] * (len(titles) - 2), "---"]
    lines = [_row(titles), f"|{'|'.join(sides)}|"]
    lines += [_row(cells(row, found)) for row in found.rows]
    lines += ["", f"{cell(_sentence(choice(found)))}.", ""]
    lines += [f"- {cell(note)}" for note in footnotes(found)]
    return lines


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(cell(text) for text in texts)} |"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
