"""Data that a user's function yields: the same batches on every reading; what is wrong is refused in one line."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_lathe.runtime.data import InputSpec, open_source
from tests.support.data import (
    COUNT,
    IMAGE,
    LABELS,
    PIXELS,
    joined,
    loader,
    refusal,
)

YIELDS = {
    "array": "yield pixels[s:s + 5]",
    "pair": "yield pixels[s:s + 5], labels[s:s + 5]",
    "list": "yield [pixels[s:s + 5].tolist() and pixels[s:s + 5], list(labels[s:s + 5])]",
    "dict": "yield {'image': pixels[s:s + 5], 'labels': labels[s:s + 5]}",
    "dict_pair": "yield {'image': pixels[s:s + 5]}, labels[s:s + 5]",
    "ready": "yield pixels[s:s + 5, None].astype('float32') / np.float32(255), labels[s:s + 5]",
    "one_by_one": "for i in range(s, min(s + 5, 23)): yield pixels[i:i + 1], labels[i:i + 1]",
    "empty_ones": "yield pixels[:0], labels[:0]; yield pixels[s:s + 5], labels[s:s + 5]",
    "same_buffer": "out = globals().setdefault('out', np.empty((5, 6, 4), 'uint8')); n = len(pixels[s:s + 5]); "
    "out[:n] = pixels[s:s + 5]; yield out[:n], labels[s:s + 5]",
}


@pytest.mark.parametrize("form", sorted(YIELDS))
def test_functions(tmp_path: Path, form: str) -> None:
    spec = loader(tmp_path, f"def batches():\n  for s in range(0, 23, 5):\n    {YIELDS[form]}\n")
    source = open_source(spec, IMAGE, "scale=1/255", classes=5)
    assert source.count is None
    assert source.labelled == (form != "array")
    for size in (8, 5, 3, 23, 100):  # again and again, in other sizes
        sizes = [batch.count for batch in source.batches(size)]
        assert sizes == [size] * (COUNT // size) + [COUNT % size] * (COUNT % size > 0)
        whole = joined(source, size)
        np.testing.assert_array_equal(
            whole.inputs["image"], PIXELS[:, None].astype(np.float32) / np.float32(255)
        )
        if whole.labels is not None:
            assert whole.labels.dtype == np.int64
            np.testing.assert_array_equal(whole.labels, LABELS)


def test_function_may_return_any_iterable(tmp_path: Path) -> None:
    spec = loader(
        tmp_path,
        "made = [pixels[:9], pixels[9:]]\ndef batches(): return made\ndef fresh(): return iter(made)\n",
    )
    for one in (spec, spec.replace(":batches", ":fresh")):
        source = open_source(one, IMAGE, "scale=1")
        for _ in range(2):
            np.testing.assert_array_equal(joined(source, 4).inputs["image"][:, 0], PIXELS)


def test_shapes_that_cannot_be_joined_stay_apart(tmp_path: Path) -> None:
    inputs = [InputSpec("ids", np.dtype(np.int64), (None, None))]
    body = "def batches():\n  for length in (3, 3, 5, 5, 2):\n    yield np.full((2, length), length)\n"
    shapes = [batch.inputs["ids"].shape for batch in open_source(loader(tmp_path, body), inputs).batches(4)]
    assert shapes == [(4, 3), (4, 5), (2, 2)]


@pytest.mark.parametrize(
    "body, reason",
    [
        (
            "import nowhere_to_be_found",
            "ModuleNotFoundError in line 4: No module named 'nowhere_to_be_found'",
        ),
        ("def batches(:", "SyntaxError in line 4"),
        ("raise SystemExit(3)", "SystemExit in line 4: 3"),
        ("def batch(): yield pixels", "has no function 'batches'; did you mean 'batch'?; it has batch"),
        ("batches = 3", "has no function 'batches'"),
        (
            "def batches(path): yield pixels",
            "TypeError: batches() missing 1 required positional argument: 'path'",
        ),
        ("def batches():\n  yield pixels\n  raise KeyError('x')", "KeyError in line 6: 'x'"),
        (
            "def batches():\n  helper()\ndef helper():\n  1 / 0",
            "ZeroDivisionError in line 7: division by zero",
        ),
        ("def batches(): return pixels", "returns one ndarray; it has to yield batches"),
        ("def batches(): return {'image': pixels}", "returns one dict; it has to yield batches"),
        ("def batches(): pass", "returns None; it has to yield batches"),
        ("def batches(): return 3", "TypeError: 'int' object is not iterable"),
        ("def batches():\n  return\n  yield", "yields no batches"),
        ("made = iter([pixels])\ndef batches(): return made", "returns the same iterator at every call"),
        ("def batches(): yield pixels, labels, 1", "batch 1 is a tuple of 3; wanted is (inputs, labels)"),
        (
            "def batches(): yield {'images': pixels}",
            "batch 1 has no 'image'; did you mean 'images'?; it has images",
        ),
        (
            "def batches(): yield {'image': pixels, 'mask': 1}",
            "has 'mask', which is no input of the model; wanted are image",
        ),
        ("def batches(): yield {'image': pixels[:, 1:]}", "batch 1: 'image' has samples of shape [5, 4]"),
        ("def batches(): yield 7", "'image' is a single number"),
        (
            "def batches(): yield pixels, labels[1:]",
            "batch 1: the labels has shape [22], but there are 23 samples",
        ),
        ("def batches(): yield pixels, labels / 2", "the labels is float64"),
        (
            "def batches():\n  yield pixels, labels\n  yield pixels",
            "batch 2 has no labels, unlike those before",
        ),
        ("def batches(): yield pixels[:0], labels", "batch 1: 'image' has no samples"),
        ("def batches(): yield pixels * np.nan", "batch 1: 'image' has NaN in sample 0"),
    ],
)
def test_function_refusals(tmp_path: Path, body: str, reason: str) -> None:
    spec = loader(tmp_path, body)
    message = refusal(spec)
    assert reason in message
    assert message.startswith(str(tmp_path / "loader.py"))


def test_function_needs_a_name_and_sees_its_neighbours(tmp_path: Path) -> None:
    assert "name the function too" in refusal(loader(tmp_path, "").removesuffix(":batches"))
    (tmp_path / "neighbour_of_loader.py").write_text("size = 4\n")
    path = list(sys.path)
    source = open_source(
        loader(tmp_path, "def batches():\n  import neighbour_of_loader as n\n  yield pixels[:n.size]\n"),
        IMAGE,
        "scale=1",
    )
    assert joined(source, 9).count == 4
    sys.path[:] = path


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), size=st.integers(1, 20))
def test_batches_of_any_size_hold_every_sample_once(tmp_path: Path, sizes: list[int], size: int) -> None:
    body = f"def batches():\n  at = 0\n  for n in {sizes}:\n    yield np.arange(at, at + n)\n    at += n\n"
    source = open_source(loader(tmp_path, body), [InputSpec("n", np.dtype(np.int64), (None,))])
    assert joined(source, size).inputs["n"].tolist() == list(range(sum(sizes)))
    assert all(batch.count == size for batch in list(source.batches(size))[:-1])
