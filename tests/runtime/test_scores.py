"""Every output is judged, slice by slice where it joins ranges, on values known by hand."""

import math

import numpy as np
import pytest

from onnx_lathe.runtime.running.joins import Join
from onnx_lathe.runtime.running.scores import Scores


def judged(
    originals: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    join: Join | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    joins = {} if join is None else {"y": [join]}
    base = Scores(joins)
    base.add(originals, labels, originals)
    scores = Scores(joins, base.slices())
    scores.add(outputs, labels, originals)
    return scores.metrics(), scores.reasons()


def detections(seed: int = 0) -> np.ndarray:
    """[2, 6, 50]: boxes of 0 to 640 in channels 0 to 3, scores of 0 to 1 in 4 and 5."""
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [generator.uniform(0, 640, (2, 4, 50)), generator.uniform(0, 1, (2, 2, 50))], axis=1
    ).astype(np.float32)


def test_the_worst_output_decides() -> None:
    scores, boxes = np.eye(4, dtype=np.float32), np.ones((4, 3, 2), np.float32)
    found, _ = judged({"scores": scores, "boxes": boxes}, {"scores": scores, "boxes": 1.1 * boxes})
    assert found["sqnr"] == pytest.approx(20, abs=1e-3)
    assert found["sqnr[boxes]"] == found["sqnr"]
    assert math.isinf(found["sqnr[scores]"])


def test_small_values_beside_large_ones_are_judged_by_themselves() -> None:
    original = detections()
    destroyed = original.copy()
    destroyed[:, 4:] = 0
    found, _ = judged({"y": original}, {"y": destroyed}, join=Join(1, (4, 2)))
    assert math.isinf(found["sqnr[y][0-3]"])
    assert found["sqnr[y][4-5]"] == pytest.approx(0, abs=1e-6)
    assert found["sqnr"] == found["sqnr[y]"] == found["sqnr[y][4-5]"]


def test_slices_are_known_sample_by_sample() -> None:
    """Counted once each, the samples give the metric; counted otherwise, that of those samples."""
    original = detections()
    noisy = original.copy()
    noisy[0, 4:] *= 1.1
    noisy[1, :4] *= 1.3
    joins = {"y": [Join(1, (4, 2))]}
    base = Scores(joins)
    base.add({"y": original}, None, {"y": original}, count=2)
    assert base.slices()["y"].axis == 1
    scores = Scores(joins, base.slices())
    scores.add({"y": noisy}, None, {"y": original}, count=2)
    found = scores.sampled()["sqnr"]
    assert found.whole() == pytest.approx(scores.metrics()["sqnr"])
    assert found.whole() == scores.sampled()["sqnr[y]"].whole()
    first, second = found.at(np.array([[3, 0], [0, 1]]))
    assert first == pytest.approx(20, abs=1e-3)
    assert second == pytest.approx(-20 * np.log10(0.3), abs=1e-3)


def test_the_channels_may_be_the_last_axis_and_need_not_lie_together() -> None:
    original = detections()[:, [0, 1, 4, 2, 3, 5]].transpose(0, 2, 1)
    noisy = original.copy()
    noisy[..., [2, 5]] *= 1.1
    found, _ = judged({"y": original}, {"y": noisy}, join=Join(2, (2, 1, 2, 1)))
    assert found["sqnr[y][2,5]"] == pytest.approx(20, abs=1e-3)
    assert math.isinf(found["sqnr[y][0-1,3-4]"])


def test_parts_of_one_kind_are_one_signal() -> None:
    logits = np.random.default_rng(1).standard_normal((64, 10)).astype(np.float32)
    found, _ = judged({"y": logits}, {"y": logits}, join=Join(1, (4, 6)))
    assert [key for key in found if key.startswith("sqnr")] == ["sqnr", "sqnr[y]"]


def test_what_is_not_joined_is_one_signal() -> None:
    """A column that is nearly black in every picture is no slice."""
    picture = np.ones((2, 1, 4, 4), np.float32)
    picture[..., 3] = 1e-3
    found, _ = judged({"y": picture}, {"y": picture})
    assert [key for key in found if key.startswith("sqnr")] == ["sqnr", "sqnr[y]"]


def test_slices_are_those_of_the_original() -> None:
    original, flat = np.ones((2, 4, 5), np.float32), np.ones((2, 4, 5), np.float32)
    flat[:, 3] = 1000
    found, _ = judged({"y": original}, {"y": flat}, join=Join(1, (3, 1)))
    assert [key for key in found if key.startswith("sqnr")] == ["sqnr", "sqnr[y]"]


def test_every_output_that_classifies_agrees_by_itself() -> None:
    same, swapped = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[1, 0, 2, 3]]
    numbers = np.arange(4)
    found, _ = judged(
        {"a": same, "b": same, "top": numbers}, {"a": same, "b": swapped, "top": numbers[[0, 1, 2, 2]]}
    )
    assert (found["agreement[a]"], found["agreement[b]"], found["agreement[top]"]) == (1.0, 0.5, 0.75)
    assert found["agreement"] == 0.5
    words = np.array(["cat", "dog"], object)
    assert judged({"y": words}, {"y": words[::-1]})[0] == {"agreement": 0.0, "agreement[y]": 0.0}


def test_labels_belong_to_the_first_output_with_enough_classes() -> None:
    labels = np.array([0, 5, 2])
    boxes, classes = np.ones((3, 4), np.float32), np.eye(6, dtype=np.float32)[[0, 5, 1]]
    found, _ = judged({"boxes": boxes, "classes": classes}, {"boxes": boxes, "classes": classes}, labels)
    assert found["top1"] == pytest.approx(2 / 3)
    numbers, _ = judged({"y": np.array([0, 5, 1])}, {"y": np.array([0, 5, 1])}, labels)
    assert numbers["top1"] == pytest.approx(2 / 3)


def test_labels_belong_to_the_output_that_is_right_most_often() -> None:
    """Boxes before classes, and as many columns: a detector's first output is not what labels are about."""
    labels = np.array([0, 1, 2])
    boxes, classes = np.zeros((3, 4), np.float32), np.eye(3, dtype=np.float32)
    boxes[:, 3] = 1
    base = Scores()
    base.add({"boxes": boxes, "classes": classes}, labels, {})
    assert base.metrics()["top1"] == 1.0
    scores = Scores(labelled=base.labelled())
    scores.add({"boxes": classes, "classes": boxes}, labels, {})
    assert scores.metrics()["top1"] == 0.0


def test_infinities_of_the_original_are_no_noise_where_they_stay() -> None:
    original = np.array([[1.0, -np.inf], [2.0, np.nan]], np.float32)
    assert math.isinf(judged({"y": original}, {"y": original})[0]["sqnr"])
    changed = np.where(np.isfinite(original), 1.1 * original, original)
    assert judged({"y": original}, {"y": changed})[0]["sqnr"] == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize(
    "output, reason",
    [
        (np.ones((2, 3, 4), np.float32), r"shape depends on its values (\[2, 3, 5\] and \[2, 3, 4\])"),
        (np.full((2, 3, 5), np.nan, np.float32), "not finite"),
    ],
)
def test_what_cannot_be_compared_has_a_reason_and_no_number(output: np.ndarray, reason: str) -> None:
    original = np.ones((2, 3, 5), np.float32)
    found, reasons = judged({"y": original, "z": original}, {"y": output, "z": original})
    assert "sqnr[y]" not in found
    assert math.isinf(found["sqnr[z]"])
    assert list(reasons) == ["y"]
    assert reason.replace("\\", "") in reasons["y"]


def test_a_sequence_that_is_shorter_is_no_equal_one() -> None:
    one = np.ones((2, 2, 2), np.float32)
    found, reasons = judged({"s[0]": one, "s[1]": one}, {"s[0]": one})
    assert "sqnr[s[1]]" not in found
    assert list(reasons) == ["s[1]"]


def test_a_join_that_the_output_has_not_is_none() -> None:
    values = np.ones((2, 7, 3), np.float32)
    values[:, 0] = 1000
    scores = Scores({"y": [Join(1, (1, 5)), Join(4, (1, 2))]})
    scores.add({"y": values}, None, {"y": values})
    assert scores.slices() == {}


def test_what_is_not_a_number_is_no_answer() -> None:
    """`argmax` would choose class 0, and the label and the original may be that."""
    original = np.eye(6, dtype=np.float32)[[0, 0, 1]]
    lost, labels = np.full_like(original, np.nan), np.array([0, 0, 1])
    found, _ = judged({"y": original}, {"y": lost}, labels)
    assert (found["top1"], found["top5"], found["agreement"]) == (0, 0, 0)
    assert judged({"y": lost}, {"y": lost}, labels)[0]["agreement"] == 1


def test_each_slice_is_known_sample_by_sample() -> None:
    original = detections()
    noisy = original.copy()
    noisy[:, 4:] *= 1.1
    joins = {"y": [Join(1, (4, 2))]}
    base = Scores(joins)
    base.add({"y": original}, None, {"y": original}, count=2)
    scores = Scores(joins, base.slices())
    scores.add({"y": noisy}, None, {"y": original}, count=2)
    metrics, found = scores.metrics(), scores.sampled()
    for key in ("sqnr[y][0-3]", "sqnr[y][4-5]"):
        assert found[key].whole() == pytest.approx(metrics[key])
