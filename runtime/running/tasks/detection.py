"""Mean average precision of boxes by COCO's definition, through pycocotools: averaged over classes and over thresholds
of overlap from 0.5 to 0.95 (`map`), or at 0.5 (`map50`); boxes of any size, 100 of a picture.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and cocodataset.org/#detection-eval.

Labels and answers are dictionaries of one picture each, as torchvision and torchmetrics have them:
{"boxes": [n, 4] of x1, y1, x2, y2, "labels": [n]}, and of answers "scores": [n].
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.runtime.running.tasks.base import POSTPROCESS, Answer, Collector, Task, as_array, labelled
from onnx_lathe.runtime.running.tasks.samples import Measured, Redrawn

FORM = '{"boxes": [n, 4] of x1, y1, x2, y2, "labels": [n]} of the picture'
THRESHOLDS = {"map": slice(None), "map50": slice(0, 1)}
"""Of the ten thresholds of overlap, those that count."""
MOST_BOXES = 100
ROW = 6
"""Of outputs [samples, n, 6]: x1, y1, x2, y2, score, class, as exports with their suppression give."""


class MeanAveragePrecision(Task):
    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> Collector:
        return _Pictures(self.name)


class _Pictures(Collector):
    def __init__(self, name: str) -> None:
        self.name = name
        self.wanted: list[dict[str, np.ndarray]] = []
        self.found: list[dict[str, np.ndarray]] = []

    def add(self, answer: Answer, labels: Sequence[Any] | None) -> None:
        where = f"metric '{self.name}'"
        self.wanted += [_boxes(one, False, f"{where}: a label") for one in labelled(labels, self.name, FORM)]
        given = _of_outputs(answer, self.name) if answer.processed is None else answer.processed
        self.found += [_boxes(one, True, f"{where}: the answer for a sample") for one in given]

    def measured(self) -> dict[str, Measured]:
        matches = _Matches(self.wanted, self.found)
        kept = THRESHOLDS[self.name]
        value = matches.averaged(kept)
        return {
            self.name: Redrawn(len(self.wanted), lambda counts: matches.redrawn(counts, kept), value, reach=1)
        }


class _Matches:
    """Which boxes pycocotools matches at each threshold, by class and falling score."""

    def __init__(self, wanted: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> None:
        self.judge = _evaluated(wanted, found)
        pictures, classes = len(wanted), len(self.judge.params.catIds)
        each = [
            [(picture, one) for picture in range(pictures) if (one := self.judge.evalImgs[start + picture])]
            for start in range(0, pictures * classes, pictures)
        ]
        self.classes = [_ranked(rows, pictures, len(self.judge.params.iouThrs)) for rows in each]

    def averaged(self, thresholds: slice) -> float:
        """As pycocotools accumulates it; NaN if no picture has a box."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.judge.accumulate()
        precision = self.judge.eval["precision"][thresholds]  # [thresholds, recalls, classes, 1, 1]
        known = precision[precision > -1]
        return float(known.mean()) if known.size else float("nan")

    def redrawn(self, counts: np.ndarray, thresholds: slice) -> float:
        """The same with each picture counted so often, int [pictures]."""
        each = [_precision(counts, one, thresholds, self.judge.params.recThrs) for one in self.classes]
        known = [value for value in each if value is not None]
        return float(np.mean(known)) if known else float("nan")


def _ranked(
    rows: Sequence[tuple[int, Mapping[str, Any]]], pictures: int, thresholds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(picture of each box, whether it matches [thresholds, boxes], whether it counts, labels per picture that count)."""
    wanted = np.zeros(pictures, np.int64)
    for picture, one in rows:
        wanted[picture] = int((np.asarray(one["gtIgnore"]) == 0).sum())
    of = np.concatenate([np.full(len(one["dtScores"]), picture) for picture, one in rows] or [np.zeros(0)])
    scores = np.concatenate([one["dtScores"] for _, one in rows] or [np.zeros(0)])
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools does
    hits, counted = (
        np.concatenate([one[key] for _, one in rows] or [np.zeros((thresholds, 0))], axis=1)[:, order]
        for key in ("dtMatches", "dtIgnore")
    )
    return of[order].astype(np.int64), hits != 0, counted == 0, wanted


def _precision(
    counts: np.ndarray, ranked: tuple[np.ndarray, ...], thresholds: slice, recalls: np.ndarray
) -> float | None:
    """Of one class, averaged over thresholds and recalls; None if no picture has a box of it."""
    of, hits, counted, wanted = ranked
    every = int(counts @ wanted)
    if every == 0:
        return None
    weight = counts[of] * counted[thresholds]
    right = np.cumsum(weight * hits[thresholds], axis=1)
    wrong = np.cumsum(weight * ~hits[thresholds], axis=1)
    precision = right / np.maximum(right + wrong, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for row, one in zip(precision, right, strict=True):
        place = np.searchsorted(one / every, recalls, side="left")
        total += float(np.where(place < len(row), np.append(row, 0.0)[place], 0.0).mean())
    return total / len(precision)


def _evaluated(wanted: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Any:
    """A COCOeval whose boxes are matched."""
    coco, judge = require_pycocotools()
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        classes = sorted({int(one) for picture in wanted for one in picture["labels"]})
        for side in (wanted, found):
            made = coco()
            made.dataset = {
                "images": [{"id": picture} for picture in range(1, len(wanted) + 1)],
                "categories": [{"id": one} for one in classes],
                "annotations": _annotations(side),
            }
            made.createIndex()
            sides.append(made)
        made = judge(*sides, "bbox")
        made.params.areaRng, made.params.areaRngLbl = [[0, 1e10]], ["all"]
        made.params.maxDets = [MOST_BOXES]
        made.evaluate()
    return made


def _annotations(pictures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        for row in range(len(picture["boxes"])):
            x1, y1, x2, y2 = picture["boxes"][row].tolist()
            made.append(
                {
                    "id": len(made) + 1,
                    "image_id": number,
                    "category_id": int(picture["labels"][row]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(picture["iscrowd"][row]) if "iscrowd" in picture else 0,
                    **({"score": float(picture["scores"][row])} if "scores" in picture else {}),
                }
            )
    return made


def _boxes(given: Any, scored: bool, where: str) -> dict[str, np.ndarray]:
    """Checked arrays of one picture."""
    keys = ("boxes", "labels", "scores") if scored else ("boxes", "labels")
    form = FORM.replace("} of", ', "scores": [n]} of') if scored else FORM
    if not isinstance(given, Mapping) or any(key not in given for key in keys):
        has = (
            f"a dictionary of {', '.join(map(str, given))}"
            if isinstance(given, Mapping)
            else type(given).__name__
        )
        raise DataError(f"{where} is {has}; wanted is {form}")
    found: dict[str, np.ndarray] = {}
    for key in (*keys, *(["iscrowd"] if "iscrowd" in given else [])):
        array = as_array(given[key])
        if array is None or (array.size and array.dtype.kind not in "biuf"):
            has = "of several lengths" if array is None else f"of type {array.dtype}"
            raise DataError(f"{where}: '{key}' is {has}, wanted are numbers; wanted is {form}")
        found[key] = array
    count = len(found["labels"].reshape(-1))
    found["boxes"] = found["boxes"].reshape(-1, 4) if found["boxes"].size == 4 * count else found["boxes"]
    for key, array in found.items():
        shape = (count, 4) if key == "boxes" else (count,)
        if array.shape != shape or (array.size and not np.isfinite(array).all()):
            raise DataError(
                f"{where}: '{key}' is {list(array.shape)}, wanted are finite numbers {list(shape)}"
            )
    return found


def _of_outputs(answer: Answer, metric: str) -> list[dict[str, np.ndarray]]:
    """Boxes of outputs that hold them as they are: [n, 4], classes and scores of one picture or of each sample, or
    rows of six.
    """
    outputs = answer.outputs
    for output in outputs.values():
        rows = output[None] if output.ndim == 2 and answer.count == 1 else output
        if len(outputs) == 1 and rows.ndim == 3 and rows.shape[-1] == ROW and len(rows) == answer.count:
            return [{"boxes": row[:, :4], "scores": row[:, 4], "labels": row[:, 5]} for row in rows]
    kinds: dict[str, list[np.ndarray]] = {"boxes": [], "scores": [], "labels": []}
    for output in outputs.values():
        key = "labels" if np.issubdtype(output.dtype, np.integer) else "scores"
        kinds["boxes" if output.shape[-1:] == (4,) and output.ndim > 1 else key].append(output)
    if all(len(found) == 1 for found in kinds.values()):
        arrays = {key: found[0] for key, found in kinds.items()}
        deep = arrays["boxes"].ndim - 1
        if all(array.ndim == deep for key, array in arrays.items() if key != "boxes"):
            if deep == 1 and answer.count == 1:
                return [arrays]
            if deep == 2 and all(len(array) == answer.count for array in arrays.values()):
                return [{key: array[row] for key, array in arrays.items()} for row in range(answer.count)]
    shapes = ", ".join(f"'{name}' {list(output.shape)} {output.dtype}" for name, output in outputs.items())
    raise DataError(
        f"metric '{metric}': outputs {shapes} are no boxes [n, 4] with classes and scores; give {POSTPROCESS}, which makes "
        f"a dictionary of boxes, labels and scores for each sample"
    )


def require_pycocotools() -> tuple[Any, Any]:
    """(COCO, COCOeval). Raises UsageError that says how to install them."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UsageError(
            'metrics map and map50 need pycocotools: pip install "onnx-lathe[metrics]"'
        ) from error
    return COCO, COCOeval
