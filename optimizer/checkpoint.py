"""Checkpoints of a run: `steps/02-prune.onnx` after each pass, and `steps/run.json`, which says what they
are made of.

A run resumes from its last step whose file is intact, and only if recipe, model, data and version are those
of the first run.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.report.record import StepRecord, plain, step_from_json, write_json
from onnx_lathe.runtime.files import hashing

STATE = "run.json"
LAYERS = "layers.json"
"""What the run measured layer by layer (optimizer/layer_errors.py)."""
TRAINING = "training.state"
"""What a training step saves after every epoch (runtime/training/state.py)."""

_CUT_OFF = re.compile(r"\.(\d\d-.*|[a-z]+\.(json|state))\.([0-9a-f]{8}\.)?tmp$")
"""What a file of this folder is called until it is whole."""


class Checkpoints:
    """The `steps` folder of one output folder. `identity` maps the name of an ingredient to its
    fingerprint.
    """

    def __init__(self, out: Path, identity: Mapping[str, str]) -> None:
        self.folder = out / "steps"
        self.identity = dict(identity)
        self.done: list[tuple[StepRecord, str]] = []
        self.resumed = False
        self.training = self.folder / TRAINING

    def earlier(self) -> dict[str, str]:
        """The identity of the run whose results are there; empty without one."""
        state = _read_state(self.folder)
        return {} if state is None else dict(state["identity"])

    def path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:02d}-{name}.onnx"

    def start(self) -> None:
        """Forgets an earlier run but for the steps that `resume` found: its checkpoints go, other files in
        the folder stay.
        """
        kept = {Path(record.file).name for record, _ in self.done}
        if not self.resumed:
            for left in self.folder.glob(f"{TRAINING}*"):  # and how its workers shared it
                left.unlink(missing_ok=True)
        (self.folder / LAYERS).unlink(missing_ok=True)
        for cut_off in self.folder.glob(".*.tmp"):  # of a run or a worker that was killed while it wrote
            if _CUT_OFF.match(cut_off.name):
                cut_off.unlink(missing_ok=True)
        for name in set(_state_files(self.folder)) - kept:
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / f"{name}.data").unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def resume(self) -> list[StepRecord]:
        """The records of the steps that need not run again. Raises UsageError if there is no earlier run,
        or it was another one.
        """
        state = _read_state(self.folder)
        if state is None:
            raise UsageError(f"{self.folder.parent}: no earlier run to resume; run without --resume")
        for key in self.identity.keys() | state["identity"].keys():
            if self.identity.get(key) != state["identity"].get(key):
                raise UsageError(
                    f"{self.folder.parent}: cannot resume, the {key} changed since; give another --out, or --force without --resume to start again there"
                )
        for entry in state["steps"]:
            record = step_from_json(entry["record"])
            path = self.folder.parent / record.file
            if not path.is_file() or file_hash(path) != entry["sha256"]:
                break
            self.done.append((record, entry["sha256"]))
        self.resumed = True
        return [record for record, _ in self.done]

    def add(self, record: StepRecord, path: Path) -> None:
        self.done.append((record, file_hash(path)))
        self._write()
        self.training.unlink(missing_ok=True)

    def _write(self) -> None:
        steps = [{"record": plain(vars(record)), "sha256": digest} for record, digest in self.done]
        write_json(self.folder / STATE, {"identity": self.identity, "steps": steps})


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"identity", "steps"} <= state.keys() else None


def _state_files(folder: Path) -> list[str]:
    state = _read_state(folder)
    return [Path(entry["record"]["file"]).name for entry in state["steps"]] if state else []


def file_hash(path: Path) -> str:
    """SHA-256 of the file and of its external data file, if it has one."""
    data = path.with_name(path.name + ".data")
    if path.is_file() and not data.is_file():
        return hashing.content(path).sha256
    digest = hashlib.sha256()
    for part in (path, data):
        if part.is_file():
            with part.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
