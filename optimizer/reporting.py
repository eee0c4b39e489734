"""Writes a run's record and its page: at the end of a run, and again from an output folder (`optimize report`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.optimizer import layer_errors
from onnx_lathe.optimizer.artifacts import PAGE, REPORT
from onnx_lathe.optimizer.opening import AS_IT_IS, open_file
from onnx_lathe.optimizer.pairing import Network, network
from onnx_lathe.optimizer.report.record import RunRecord, read_record
from onnx_lathe.optimizer.run import Request
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing

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
    record.write(request.out / REPORT)
    if not request.html:
        return
    try:
        _write(record, request.out, request.model, request.wishes, request.out / PAGE)
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a picture that fails
        ui.note(f"warning: {PAGE} was not written: {_line(error)}")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, LatheError) else f"{type(error).__name__}: {text}"


def report(folder: str | Path, html: str | Path | None = None, *, model: str | Path | None = None) -> Page:
    """Makes report.html again from the output folder of a run.

    html: where to write it, if not into the folder. model: the original, if it is no longer where it was.
    Raises UsageError for a folder without a readable report.json, a file that cannot be written, or a `model` that is
    another than the run's.
    """
    for given in (folder, html, model):
        if not isinstance(given, str | Path | None):
            raise UsageError(f"report takes paths, not {type(given).__name__}")
    out = Path(folder)
    if not out.is_dir():
        raise UsageError(f"{out}: is no folder; give the --out of a run")
    record = read_record(out / REPORT)
    original = Path(model or record.model["path"])
    if model is not None and model_file.inspect_file(original).sha256 != record.model["sha256"]:
        raise UsageError(
            f"{original}: is not the model of this run, by its SHA-256; give the one that it compiled"
        )
    page = out / PAGE if html is None else Path(html)
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{page}: give a name that ends in .html")
    try:
        return _write(record, out, original, AS_IT_IS, page)
    except UsageError:
        raise
    except LatheError as error:
        raise UsageError(str(error)) from error


def _write(record: RunRecord, out: Path, original: Path, wishes: Wishes, page: Path) -> Page:
    from onnx_lathe.optimizer.report.html.document import document
    from onnx_lathe.optimizer.report.html.page import render

    before, after, notes = _models(record, out, original, wishes)
    measured = layer_errors.read(out) if record.steps else None
    found = document(record, before, after, measured, notes)
    content = render(found)
    with replacing(page) as file:
        file.write(content)
    return Page(page, len(content), found["notes"])


def _models(
    record: RunRecord, out: Path, original: Path, wishes: Wishes
) -> tuple[Network | None, Network | None, list[str]]:
    """The original and the last step's model, and why they are not there."""
    if record.model["size_bytes"] > LARGEST_BYTES:
        return None, None, ["the models are larger than 1 GB and were not looked into"]
    try:
        if model_file.inspect_file(original).sha256 != record.model["sha256"]:
            raise UsageError(f"{original}: was changed after the run")
        before = network(open_file(original, wishes).model)
        after = network(model_file.load(out / record.steps[-1].file)) if record.steps else before
    except (LatheError, OSError) as error:
        return None, None, [f"nothing is said of layers: {_line(error)}"]
    return before, after, []
