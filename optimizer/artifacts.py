"""The results in an output folder: what an earlier run left there, and what must never be overwritten.

Only files that an earlier run's `report.json` lists are removed or replaced; anything else in the folder is
the user's.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.targets.core.registry import targets

REPORT = "report.json"
BUILDING = ".building-"
"""How folders begin that targets build in."""
PLACING = Path("steps", "placing.json")
"""In an output folder while results are put there: names of what is not in a report yet."""
PAGE = "report.html"
PAGE_MARK = b'<meta name="generator" content="Lathe report">'
"""In the first lines of a page that a run wrote."""


def check(out: Path, model: Path) -> None:
    """Raises UsageError if the run would overwrite the user's own files: its input, or results that no
    earlier run lists.
    """
    folder = out.resolve()
    if model.resolve().parent in (folder, folder / "steps"):
        raise UsageError(f"{model}: lies in the output folder {out}, where results go; give another --out")
    ours = _listed(out)
    for path in _results(out):
        if path.relative_to(out).as_posix() not in ours:
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
    _remove_unfinished(out)
    listed = _listed(out)
    for folder in sorted({PurePosixPath(name).parts[0] for name in listed if "/" in name}):
        _remove_folder(out / folder, {name for name in listed if name.startswith(f"{folder}/")})
    for name in sorted(listed - {REPORT}):  # a file before its data
        (path := out / name).unlink(missing_ok=True)
        with suppress(OSError):  # the folder is not empty yet, or not there
            while (path := path.parent) != out:
                path.rmdir()
    (out / REPORT).unlink(missing_ok=True)  # last: while anything is there, it says whose that is
    settled(out)


def announce(out: Path, names: Collection[str]) -> None:
    """Says which files are about to appear, so that a run that is killed before its report has them as its own."""
    with replacing(out / PLACING) as file:
        file.write(json.dumps(sorted(names)).encode())


def settled(out: Path) -> None:
    """The report says now what `announce` has said, or nothing of it is there."""
    (out / PLACING).unlink(missing_ok=True)


def there(out: Path) -> bool:
    """Whether a run has left a report, or files without one."""
    return (out / REPORT).exists() or (out / PLACING).exists()


def _remove_unfinished(out: Path) -> None:
    """What a run that was killed has left: nobody else writes here now."""
    for folder in out.glob(f"{BUILDING}*"):
        shutil.rmtree(folder)
    for name in (REPORT, PAGE):
        for cut_off in out.glob(f".{name}.*.tmp"):
            cut_off.unlink(missing_ok=True)


def _remove_folder(folder: Path, listed: Collection[str]) -> None:
    """A folder of results goes as a whole; one with other files in it, file by file."""
    with tempfile.TemporaryDirectory(prefix=BUILDING, dir=folder.parent) as scratch:
        inside = [path for path in folder.rglob("*") if not path.is_dir()]
        if folder.is_dir() and all(path.relative_to(folder.parent).as_posix() in listed for path in inside):
            folder.replace(Path(scratch) / folder.name)


def _results(out: Path) -> Iterable[Path]:
    """What is there of the report, and of the files that any target writes, those in its folders too."""
    patterns = {REPORT, PAGE, *(pattern for target in targets().values() for pattern in target.outputs)}
    found = {path for pattern in patterns for path in out.glob(pattern)}
    inside = {path for folder in found if folder.is_dir() for path in folder.rglob("*")}
    return sorted(path for path in found | inside if not path.is_dir())


def _built(out: Path) -> set[str]:
    """Names of the targets that the earlier run in this folder built files for."""
    try:
        report = _read(out / REPORT)
        return {target["name"] for target in report["targets"] if target["files"] and not target["error"]}
    except (KeyError, TypeError):
        return set()


def _listed(out: Path) -> set[str]:
    """Names of the files that the earlier run in this folder made, by its report, or by what it announced if it was
    killed before that. One that leads out of the folder is none of them.
    """
    announced = _inside(_read(out / PLACING))
    try:
        report = _read(out / REPORT)
        files = _inside([name for target in report["targets"] for name in target["files"]])
        return {REPORT, *_page(out), *files, *announced} if "schema" in report else announced
    except (KeyError, TypeError):
        return announced


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _inside(names: Any) -> set[str]:
    """Those that are below the output folder; none of what is no list of names."""
    if not isinstance(names, list):
        return set()
    paths = {PurePosixPath(name) for name in names if isinstance(name, str) and name}
    return {str(path) for path in paths if path.parts and not path.is_absolute() and ".." not in path.parts}


def _page(out: Path) -> set[str]:
    """The page beside a report, if a run wrote it: a user may have one of that name."""
    return {PAGE} if is_page(out / PAGE) else set()


def is_page(path: Path) -> bool:
    """Whether a run, or `optimize report`, wrote this page."""
    with suppress(OSError), path.open("rb") as file:
        return PAGE_MARK in file.read(2048)
    return False


def same_file(one: Path, other: Path) -> bool:
    """Whether both are there and are one file, by whatever name."""
    return one.exists() and other.exists() and one.samefile(other)


def files_of(spec: Any) -> list[Path]:
    """The files that data may be: PATH, PATH:PART or PATH:FUNCTION; none of what is not written as a path."""
    if not isinstance(spec, str | Path):
        return []
    return [Path(text).expanduser() for text in (str(spec), str(spec).rpartition(":")[0]) if text]


def beside(source: Path, out: str | Path | None, suffix: str) -> Path:
    """Where to write: `out`, or `source` with another ending. Raises UsageError for the input itself, or a
    file that nobody named.
    """
    target = source.with_suffix(suffix) if out is None else Path(out)
    if same_file(target, source):
        raise UsageError(f"{target}: is the input itself; name another file with -o")
    if out is None and target.exists():
        raise UsageError(f"{target}: is there already; name the result with -o")
    return target
