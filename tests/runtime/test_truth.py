"""Labels of any form: what is one, which are class numbers, and when two are the same."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.data.truth import Truth, content, read_truth
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from tests.support.builders import build


def read(labels: Any, form: Truth = Truth.ANY) -> np.ndarray | None:
    return read_truth(labels, 2, 3, "the labels", form)[1]


@pytest.mark.parametrize("labels", [[1, 2], [np.array([1]), 2], np.array([[1], [2]]), np.uint8([1, 2])])
def test_numbers_in_any_form_are_classes(labels: Any) -> None:
    found = read(labels)
    assert found is not None
    assert found.tolist() == [1, 2]


@pytest.mark.parametrize(
    "labels", [["a", "b"], [1, [1, 2]], [1.5, 2], [True, False], [2**70, 1], np.zeros((2, 1, 1), int)]
)
def test_other_forms_are_no_classes(labels: Any) -> None:
    assert read(labels) is None


@pytest.mark.parametrize("labels, wrong", [([7, 2], 7), ([-1, 2], -1)])
def test_numbers_that_are_no_class_are_for_the_users_own_metric_alone(labels: Any, wrong: int) -> None:
    with pytest.raises(DataError, match=f"holds {wrong}, wanted are class numbers 0 to 2"):
        read(labels)
    assert read(labels, Truth.OWN) is None


def test_a_single_number_is_no_list_of_labels() -> None:
    with pytest.raises(DataError, match="the labels are one ndarray, wanted is a list with one per sample"):
        read(np.array(3))


class Labelled(DataSource):
    """Four samples with labels of any form."""

    fingerprint = description = "samples"
    labelled, count = False, 4

    def __init__(self, truth: list[Any]) -> None:
        self.truth = truth

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        yield Batch({"x": np.eye(4, dtype=np.float32)}, truth=self.truth)


def test_labels_that_change_between_readings_are_refused() -> None:
    def boxes(width: float) -> list[Any]:
        return [{"boxes": np.float32([[0, 0, 1, width]]), "labels": [1]} for _ in range(4)]

    session = ort.session(build("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }"))
    original = reference(session, Labelled(boxes(1)), lambda text: None)
    evaluate(session, Labelled(boxes(1)), original, lambda text: None)
    for changed in (boxes(2), ["a", "b", "c", "d"]):
        with pytest.raises(DataError, match="must yield the same each time"):
            evaluate(session, Labelled(changed), original, lambda text: None)


def test_the_content_is_what_counts() -> None:
    kinds: list[Any] = [
        "a",
        b"a",
        1,
        1.0,
        None,
        [1],
        [1, 1],
        {"a": 1},
        np.ones(2),
        np.ones(2, int),
        np.ones((2, 1)),
    ]
    assert len({content([one]) for one in kinds}) == len(kinds)
    assert content([{"a": [np.ones(3)]}, "b"]) == content(({"a": (np.ones(3),)}, "b"))
    assert content([object()]) == content([object()])
