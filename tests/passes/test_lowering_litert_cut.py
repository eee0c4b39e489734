"""The labelling of the layout for LiteRT against every possible one."""

import itertools

import numpy as np
import pytest

from onnx_lathe.passes.lowering.litert_layout.cut import Labelling

VARIABLES = "abcdefg"


def random_labelling(seed: int) -> Labelling:
    """Groups of a producer and up to three readers, and wishes of single variables; labels are among both."""
    random = np.random.default_rng(seed)
    keys = [0, 1, *VARIABLES]
    labelling = Labelling()
    for _ in range(int(random.integers(3, 14))):
        readers = [keys[one] for one in random.integers(0, len(keys), random.integers(1, 4))]
        producer = keys[int(random.integers(len(keys)))]
        labelling.group(producer, readers, int(random.integers(0, 50)))
    for variable in VARIABLES:
        labelling.prefer(variable, int(random.integers(2)), int(random.integers(0, 20)))
    return labelling


def lowest(labelling: Labelling) -> float:
    return min(
        labelling.cost(dict(zip(VARIABLES, labels, strict=True)))
        for labels in itertools.product((0, 1), repeat=len(VARIABLES))
    )


@pytest.mark.parametrize("seed", range(60))
def test_no_labelling_is_cheaper(seed: int) -> None:
    labelling = random_labelling(seed)
    assert labelling.cost(labelling.cheapest()) == lowest(labelling)


@pytest.mark.parametrize("seed", range(20))
def test_what_may_not_differ_does_not(seed: int) -> None:
    labelling = random_labelling(seed)
    labelling.group("a", ["b", "c"], None)
    labels = labelling.cheapest()
    assert labels["a"] == labels["b"] == labels["c"]
    assert labelling.cost(labels) == lowest(labelling)


def test_a_tensor_is_paid_for_once_however_many_read_it() -> None:
    labelling = Labelling()
    labelling.group("p", ["q", "r", "s"], 5)
    labelling.group("q", [0], 3)
    labelling.group("r", [0], 3)
    labelling.group(1, ["p"], 7)
    labels = labelling.cheapest()
    assert labels == {"p": 1, "q": 0, "r": 0, "s": 0} or labels == {"p": 1, "q": 0, "r": 0, "s": 1}
    assert labelling.cost(labels) == 5


def test_channels_are_last_where_it_makes_no_difference() -> None:
    labelling = Labelling()
    labelling.group(1, ["a"], 4)
    labelling.group("a", ["b"], 4)
    labelling.group("b", [0], 4)
    assert labelling.cheapest() == {"a": 1, "b": 1}
