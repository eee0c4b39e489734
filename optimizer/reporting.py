"""Writes a run's record and its page: at the end of a run, and again from an output folder (`optimize report`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx_lathe import held
from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.optimizer import artifacts, layer_errors
from onnx_lathe.optimizer.artifacts import PAGE, REPORT, is_page
from onnx_lathe.optimizer.opening import open_file
from onnx_lathe.optimizer.pairing import Network, network
from onnx_lathe.optimizer.report.record import RunRecord, read_record
from onnx_lathe.optimizer.run import Request
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing

UNREAD = "nothing is said of layers: "
LARGEST_BYTES = 1 << 30
"""Of models that are looked into: larger ones would be read whole for some pictures."""


@dataclass(frozen=True)
class Page:
    """`path` of the file; `notes` say what it leaves out."""

    path: Path
    size_bytes: int
    notes: list[str]

    def as_json(self) -> Mapping[str, object]:
        return {"file": str(self.path), "size_bytes": self.size_bytes, "notes": self.notes}


def finish(record: RunRecord, request: Request, ui: Ui) -> None:
    """Writes report.json and report.html of a run. A page that cannot be written is a warning: the run is done.

    Raises UsageError if report.json cannot be written.
    """
    write_record(record, request.out)
    if not request.html:
        return
    try:
        _write(record, request.out, request.model, request.reading, request.out / PAGE)
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a picture that fails
        ui.note(f"warning: {PAGE} was not written: {_line(error)}")


def write_record(record: RunRecord, out: Path) -> None:
    """Writes report.json, by which the next run knows which files are this one's. Raises UsageError if it cannot."""
    record.write(out / REPORT)
    artifacts.settled(out)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, LatheError) else f"{type(error).__name__}: {text}"


def report(
    folder: str | Path,
    html: str | Path | None = None,
    *,
    model: str | Path | None = None,
    force: bool = False,
) -> Page:
    """Makes report.html again from the output folder of a run.

    html: where to write it, if not into the folder. model: the original, if it is no longer where it was. force:
    replaces a file that is no such page, and a page with layers by one without.
    Raises UsageError for a folder without a readable report.json, a file that cannot be written or is not to be
    replaced, or a `model` that is another than the run's.
    """
    for given in (folder, html, model):
        if not isinstance(given, str | Path | None):
            raise UsageError(f"report takes paths, not {type(given).__name__}")
    out = Path(folder)
    if not out.is_dir():
        raise UsageError(f"{out}: is no folder; give the --out of a run")
    record = read_record(out / REPORT)
    for step in record.steps:
        if not (out / step.file).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"{out / REPORT}: names {step.file}, which is not in the folder")
    original = Path(model or record.model.get("file") or record.model["path"])
    if model is not None and model_file.inspect_file(original).sha256 != record.model["sha256"]:
        raise UsageError(
            f"{original}: is not the model of this run, by its SHA-256; give the one that it compiled"
        )
    page = out / PAGE if html is None else Path(html)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{page}: give a name that ends in .html")
    if not force and page.exists() and not is_page(page):
        raise UsageError(
            f"{page}: is there already and no page of a run; give --html another name, or --force"
        )
    wishes = Wishes(fix_inputs=record.model.get("fixed_inputs", {}))
    try:
        return _write(record, out, original, wishes, page, keep_layers=not force)
    except UsageError:
        raise
    except LatheError as error:
        raise UsageError(str(error)) from error


def _write(
    record: RunRecord, out: Path, original: Path, wishes: Wishes, page: Path, *, keep_layers: bool = False
) -> Page:
    """keep_layers: raises UsageError before a page that shows layers is replaced by one that shows none."""
    from onnx_lathe.optimizer.report.html.document import document
    from onnx_lathe.optimizer.report.html.page import render

    with held.area(out):  # weights in another file are looked at there
        before, after, notes = _models(record, out, original, wishes)
        if before is None and keep_layers and _shows_layers(page):
            raise UsageError(
                f"{page}: shows layers, and the new page could not: {notes[0].removeprefix(UNREAD)}; "
                "give --model FILE, the original, or --force"
            )
        measured = layer_errors.read(out) if record.steps else None
        found = document(record, before, after, measured, notes)
        content = render(found)
    with replacing(page) as file:
        file.write(content)
    return Page(page, len(content), found["notes"])


def _shows_layers(page: Path) -> bool:
    return page.exists() and b'"layers":[{' in page.read_bytes()


def _models(
    record: RunRecord, out: Path, original: Path, wishes: Wishes
) -> tuple[Network | None, Network | None, list[str]]:
    """The original and the last step's model, and why they are not there."""
    if record.model["size_bytes"] > LARGEST_BYTES:
        return None, None, ["the models are larger than 1 GB and were not looked into"]
    try:
        if model_file.facts(original).sha256 != record.model["sha256"]:
            raise UsageError(f"{original}: was changed after the run")
        before = network(open_file(original, wishes).model)
        after = network(model_file.load(out / record.steps[-1].file)) if record.steps else before
    except (LatheError, OSError) as error:
        return None, None, [f"{UNREAD}{_line(error)}"]
    return before, after, []
