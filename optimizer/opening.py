"""Opens a user's model for the passes: read, prepared (passes/loading), and compared with what was given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.core.contract import FLIPPED, check_model, flipped
from onnx_lathe.passes.loading.order import sort_nodes
from onnx_lathe.passes.loading.preparing import Wishes, is_ready, prepare
from onnx_lathe.passes.loading.walk import standard_opset
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.reading import OLDEST
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.fed import fed

AS_IT_IS = Wishes()
"""A user who says nothing."""
TOLERANCE = 1e-3
"""Of a float output, relative to its largest value: operators are fused otherwise in the rewritten model."""


@dataclass(frozen=True)
class Opened:
    """A model that passes can work on. `notes`: what was done to it, for the report. `rewritten`: it has to be
    compared with the model that was given, by `compare`.
    """

    model: onnx.ModelProto
    opset: int
    nodes: int
    """Opset and number of nodes of the model that was given."""
    notes: list[str] = field(default_factory=list)
    rewritten: bool = False
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Values of inputs that are constants now, with which the model that was given has to be fed."""
    as_given: bool = False
    """Whether nothing at all was done to it, its metadata and the order of its nodes included."""


def open_file(path: str | Path, wishes: Wishes = AS_IT_IS, data: bool = True) -> Opened:
    """The model of a file, packed or not. Without `data`, weights in another file stay there
    (`model_file.load_without_data`).

    Raises ModelError as `model_file.load` does, and for an operator of an old opset that cannot be said at a newer one.
    """
    load = model_file.load if data else model_file.load_without_data
    return _prepared(load(path, OLDEST, sort_nodes), wishes, f"{path}: ")


def open_given(model: onnx.ModelProto, wishes: Wishes = AS_IT_IS) -> Opened:
    """A model in memory; the very same one if nothing has to be done, else a copy."""
    model_file.checked(model, OLDEST, sort_nodes)
    if is_ready(model, wishes):
        return _prepared(model, wishes, "")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _prepared(copy, wishes, "")


def compare(given: Any, opened: Opened, feeds: Mapping[str, np.ndarray], written: Path | None = None) -> None:
    """Runs the rewritten model, which may be `written` to a file, beside a session of the given one, which is fed
    with what is constant now. Raises ModelError naming an output that differs.
    """
    if not opened.rewritten:
        return
    given = fed(given, opened.fixed)
    try:
        difference = first_difference(given, ort.session(written or opened.model), feeds)
    except ModelError as error:
        difference = str(error)
    if difference:
        done = "; ".join(opened.notes)
        raise ModelError(f"{done}: {difference} then; export the model again with opset_version=17")


def first_difference(given: Any, rewritten: Any, feeds: Mapping[str, np.ndarray]) -> str:
    """The first output that two sessions compute differently, and how; empty if there is none."""
    found = ort.run(rewritten, feeds)
    for name, expected in ort.run(given, feeds).items():
        if name not in found:
            return f"output '{name}' is missing"
        if difference := _unlike(expected, found[name]):
            return f"output '{name}' differs: {difference}"
    return ""


def compare_on_random(given: Any, opened: Opened) -> None:
    """As `compare`, on random input. An input that cannot be made up leaves the model uncompared, which the
    notes say.
    """
    if not opened.rewritten:
        return
    given = fed(given, opened.fixed)
    try:
        feeds = ort.random_feeds(given)
        ort.run(given, feeds)
    except ModelError as error:
        opened.notes.append(f"not compared with the model given, which takes no random input: {error}")
        return
    compare(given, opened, feeds)


def _prepared(model: onnx.ModelProto, wishes: Wishes, named: str) -> Opened:
    opset, nodes = standard_opset(model), len(model.graph.node)
    version = 0 if opset is None else opset.version
    ready = is_ready(model, wishes)
    try:
        done = prepare(model, wishes)
        if done.rewritten:
            check_model(model, strict=False)
    except ModelError as error:
        raise ModelError(f"{named}{error}") from error
    return Opened(model, version, nodes, done.notes, done.rewritten, done.fixed, ready)


def _unlike(expected: np.ndarray, found: np.ndarray) -> str:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{expected.dtype} {list(expected.shape)} became {found.dtype} {list(found.shape)}"
    if expected.size == 0:
        return ""
    if not np.issubdtype(expected.dtype, np.floating):
        share = flipped(expected, found)
        return f"{share:.1%} of its values are others" if share > FLIPPED else ""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return "it is finite elsewhere"
    if not finite.any():
        return ""
    wide = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    error = float(np.abs(wide[0] - wide[1]).max() / max(float(np.abs(wide[0]).max()), 1e-30))
    return f"by {error:.2g} of its largest value" if error > TOLERANCE else ""
