"""The results in an output folder: what an earlier run left there, and what must never be overwritten.

Only files that an earlier run's `report.json` lists are removed or replaced; anything else in the folder is
the user's.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.targets.core.registry import targets

REPORT = "report.json"


def check(out: Path, model: Path) -> None:
    """Raises UsageError if the run would overwrite the user's own files: its input, or results that no
    earlier run lists.
    """
    folder = out.resolve()
    if model.resolve().parent in (folder, folder / "steps"):
        raise UsageError(f"{model}: lies in the output folder {out}, where results go; give another --out")
    ours = _listed(out)
    for path in _results(out):
        if path.name not in ours:
            raise UsageError(f"{path}: is there already and not from an earlier run; give another --out")


def check_same(
    out: Path, earlier: Mapping[str, str], identity: Mapping[str, str], targets: Collection[str]
) -> None:
    """Raises UsageError if the results in the folder are of another model or recipe, or of a target that this
    run builds nothing for: they would be erased.
    """
    changed = [name for name in ("model", "recipe") if name in earlier and earlier[name] != identity[name]]
    if lost := sorted(_built(out) - set(targets)):
        changed.append(f"target ({', '.join(lost)})")
    if changed:
        number = next(number for number in itertools.count(2) if not Path(f"{out}-{number}").exists())
        raise UsageError(
            f"{out}: holds the results of another {' and '.join(changed)}; "
            f"give --out {out}-{number}, or --force to erase them"
        )


def clear(out: Path) -> None:
    """Removes what an earlier run built, so that nothing of it can pass for the result of this one."""
    for name in _listed(out):
        (out / name).unlink(missing_ok=True)


def _results(out: Path) -> Iterable[Path]:
    """What is there of the report, and of the files that any target writes."""
    patterns = {REPORT, *(pattern for target in targets().values() for pattern in target.outputs)}
    return sorted(path for pattern in patterns for path in out.glob(pattern))


def _built(out: Path) -> set[str]:
    """Names of the targets that the earlier run in this folder built files for."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        return {target["name"] for target in report["targets"] if target["files"] and not target["error"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _listed(out: Path) -> set[str]:
    """Names of the files that the earlier run in this folder made; empty without its report."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        files = {Path(name).name for target in report["targets"] for name in target["files"]}
        return {REPORT, *files} if "schema" in report else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def beside(source: Path, out: str | Path | None, suffix: str) -> Path:
    """Where to write: `out`, or `source` with another ending. Raises UsageError for the input itself, or a
    file that nobody named.
    """
    target = source.with_suffix(suffix) if out is None else Path(out)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target}: is the input itself; name another file with -o")
    if out is None and target.exists():
        raise UsageError(f"{target}: is there already; name the result with -o")
    return target
