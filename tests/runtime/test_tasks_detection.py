"""Mean average precision: pycocotools' own number, also of samples drawn again, from every form of boxes."""

import contextlib
import io
import sys
from typing import Any

import numpy as np
import pytest

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.runtime.running.tasks.base import Answer
from onnx_lathe.runtime.running.tasks.detection import MeanAveragePrecision, require_pycocotools
from onnx_lathe.runtime.running.tasks.samples import Measured

pytest.importorskip("pycocotools")

Picture = dict[str, np.ndarray]


def pictures(count: int, seed: int = 0) -> tuple[list[Picture], list[Picture]]:
    """Boxes of three classes, and what a detector finds: some moved, some missed, some that are not there."""
    generator = np.random.default_rng(seed)
    labels, found = [], []
    for number in range(count):
        n = int(generator.integers(0 if number else 1, 6))
        corner, size = generator.uniform(0, 80, (n, 2)), generator.uniform(8, 40, (n, 2))
        boxes = np.concatenate([corner, corner + size], axis=1)
        classes = generator.integers(1, 4, n)
        labels.append({"boxes": boxes, "labels": classes})
        kept = generator.random(n) < 0.8
        moved = boxes[kept] + generator.normal(0, 2.5, (int(kept.sum()), 4))
        extra = generator.uniform(0, 60, (2, 2))
        found.append(
            {
                "boxes": np.concatenate([moved, np.concatenate([extra, extra + 20], axis=1)]),
                "labels": np.append(classes[kept], generator.integers(1, 4, 2)),
                "scores": generator.random(len(moved) + 2).round(2),
            }
        )
    return labels, found


def by_pycocotools(labels: list[Picture], found: list[Picture]) -> tuple[float, float]:
    """(AP, AP at 0.5) by COCOeval alone, with its own defaults."""
    coco, judge = require_pycocotools()
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for side in (labels, found):
            made = coco()
            rows = [
                (number, picture, row)
                for number, picture in enumerate(side)
                for row in range(len(picture["boxes"]))
            ]
            made.dataset = {
                "images": [{"id": number} for number in range(len(side))],
                "categories": [{"id": number} for number in (1, 2, 3)],
                "annotations": [
                    {
                        "id": at + 1,
                        "image_id": number,
                        "category_id": int(picture["labels"][row]),
                        "bbox": [*picture["boxes"][row][:2], *(picture["boxes"][row][2:] - picture["boxes"][row][:2])],
                        "area": float(np.prod(picture["boxes"][row][2:] - picture["boxes"][row][:2])),
                        "iscrowd": 0,
                        "score": float(picture["scores"][row]) if "scores" in picture else 0,
                    }
                    for at, (number, picture, row) in enumerate(rows)
                ],
            }  # fmt: skip
            made.createIndex()
            sides.append(made)
        evaluated = judge(*sides, "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return float(evaluated.stats[0]), float(evaluated.stats[1])


def measured(name: str, labels: list[Picture], answer: Answer) -> Measured:
    collector = MeanAveragePrecision(name).start()
    collector.add(answer, labels)
    return collector.measured()[name]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_cocos_number(seed: int) -> None:
    labels, found = pictures(25, seed)
    expected = by_pycocotools(labels, found)
    for name, value in zip(("map", "map50"), expected, strict=True):
        one = measured(name, labels, Answer({}, 25, processed=found))
        assert 0.1 < one.whole() < 0.9
        assert one.whole() == pytest.approx(value, abs=1e-12)
        assert one.at(np.ones((1, 25), int))[0] == pytest.approx(value, abs=1e-12)


def test_samples_drawn_again_are_judged_as_pictures_of_their_own() -> None:
    labels, found = pictures(12)
    for picture in found:  # equal scores of a picture and its copy have no order of their own
        picture["scores"] = np.random.default_rng(len(picture["scores"])).random(len(picture["scores"]))
    counts = np.random.default_rng(3).multinomial(12, [1 / 12] * 12)
    rows = np.repeat(np.arange(12), counts)
    expected = by_pycocotools([labels[row] for row in rows], [found[row] for row in rows])
    drawn = measured("map", labels, Answer({}, 12, processed=found)).at(counts[None])[0]
    assert drawn == pytest.approx(expected[0], abs=5e-3)


def six(found: list[Picture], most: int) -> np.ndarray:
    """[pictures, most, 6], with boxes of score 0 behind."""
    rows = np.zeros((len(found), most, 6), np.float32)
    for row, picture in zip(rows, found, strict=True):
        count = len(picture["scores"])
        row[:count, :4], row[:count, 4], row[:count, 5] = (
            picture["boxes"],
            picture["scores"],
            picture["labels"],
        )
    return rows


def test_outputs_that_hold_boxes_need_no_postprocess() -> None:
    labels, found = pictures(6)
    expected = measured("map50", labels, Answer({}, 6, processed=found)).whole()
    rows = six(found, 8)
    forms: list[list[Answer]] = [
        [Answer({"y": rows}, 6)],
        [Answer({"y": row}, 1, alone=True) for row in rows],
        [
            Answer(
                {"boxes": rows[..., :4], "scores": rows[..., 4], "labels": rows[..., 5].astype(np.int64)}, 6
            )
        ],
        [Answer({"b": one["boxes"], "l": one["labels"], "s": one["scores"]}, 1, alone=True) for one in found],
    ]
    for answers in forms:
        collector = MeanAveragePrecision("map50").start()
        at = 0
        for answer in answers:
            collector.add(answer, labels[at : at + answer.count])
            at += answer.count
        assert collector.measured()["map50"].whole() == pytest.approx(expected, abs=1e-6)


def test_nothing_found_is_no_precision() -> None:
    labels, _ = pictures(4)
    none = {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}
    assert measured("map", labels, Answer({}, 4, processed=[none] * 4)).whole() == 0


def test_a_box_of_a_crowd_is_neither_found_nor_missed() -> None:
    labels, found = pictures(5)
    crowd = [{**one, "iscrowd": np.ones(len(one["labels"]), int)} for one in labels]
    assert np.isnan(measured("map", crowd, Answer({}, 5, processed=found)).whole())


@pytest.mark.parametrize(
    "labels, answer, said",
    [
        (None, Answer({}, 1, processed=[{}]), "metric 'map' needs labels"),
        ([3], Answer({}, 1, processed=[{}]), "a label is int; wanted is"),
        ([{"boxes": [], "classes": []}], Answer({}, 1, processed=[{}]), "a dictionary of boxes, classes; wanted is"),
        (
            [{"boxes": [[0, 0, 1]], "labels": [1]}],
            Answer({}, 1, processed=[{}]),
            r"'boxes' is \[1, 3\], wanted are finite numbers \[1, 4\]",
        ),
        (
            [{"boxes": [[0, 0, 1, 1]], "labels": [1]}],
            Answer({}, 1, processed=[{"boxes": [[0, 0, 1, np.nan]], "labels": [1], "scores": [0.5]}]),
            "the answer for a sample: 'boxes' is",
        ),
        (
            [{"boxes": [[0, 0, 1, 1]], "labels": [1]}],
            Answer({"raw": np.zeros((1, 84, 100), np.float32)}, 1),
            r"outputs 'raw' \[1, 84, 100\] float32 are no boxes \[n, 4\] with classes and scores; give --postprocess",
        ),
    ],
)  # fmt: skip
def test_what_is_no_boxes_is_named(labels: Any, answer: Answer, said: str) -> None:
    collector = MeanAveragePrecision("map").start()
    with pytest.raises(DataError, match=said) as refused:
        collector.add(answer, labels)
    assert "\n" not in str(refused.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UsageError, match=r'need pycocotools: pip install "onnx-lathe\[metrics\]"'):
        require_pycocotools()


@pytest.mark.parametrize(
    "boxes, classes, said",
    [
        ([[0, 0, 1, 1], [1]], [1, 2], "a label: 'boxes' is of several lengths, wanted are numbers"),
        ([[0, 0, 1, 1]], ["cat"], "a label: 'labels' is of type <U3, wanted are numbers"),
        (None, [1], "a label: 'boxes' is of type object"),
    ],
)
def test_labels_that_are_no_numbers_are_one_line(boxes: Any, classes: Any, said: str) -> None:
    collector = MeanAveragePrecision("map").start()
    found = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "scores": np.zeros(0)}
    with pytest.raises(DataError, match=said) as refused:
        collector.add(Answer({}, 1, processed=[found]), [{"boxes": boxes, "labels": classes}])
    assert "\n" not in str(refused.value)
