"""Arrays for networks whose inputs do not all begin with a batch axis: how they are read, and refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import DataSource, InputSpec, open_source
from onnx_lathe.runtime.files.signature import model_inputs, takes_one_sample
from tests.support.data import loader

FLOAT, WHOLE = np.dtype(np.float32), np.dtype(np.int64)
VOICE = [
    InputSpec("input", FLOAT, (None, 6)),
    InputSpec("state", FLOAT, (2, None, 4)),
    InputSpec("rate", WHOLE, ()),
]
INPUT = np.arange(5 * 6, dtype=np.float32).reshape(5, 1, 6)
STATE = np.arange(5 * 8, dtype=np.float32).reshape(5, 2, 1, 4)
RATE = np.array(16000)
DETECTOR = [InputSpec("image", FLOAT, (None, 3, 4, 5)), InputSpec("least", FLOAT, (1,))]


def calls(source: DataSource) -> list[dict[str, np.ndarray]]:
    found = [batch.call(row) for batch in source.batches(2) for row in range(batch.count) if batch.per_call]
    assert len(found) == source.count
    return found


@pytest.mark.parametrize(
    "shapes, single",
    [
        ([(None, 3)], False),
        ([(8, 3), (8,)], False),
        ([(1, 3), (1,)], False),
        ([("batch", 3), ("batch",)], False),
        ([("batch", 3), (1,)], True),
        ([(None, 3), (1, 4)], False),
        ([(80, 30)], False),
        ([("batch", 3), ()], True),
        ([("batch", 3), (2, "batch", 4)], True),
        ([(1, 3), (2, 1, 4)], True),
        ([()], True),
        ([(1,)], False),
    ],
)
def test_which_models_take_no_batch(shapes: list[tuple[int | str | None, ...]], single: bool) -> None:
    assert takes_one_sample(shapes) is single


@pytest.mark.parametrize("given", [INPUT, INPUT[:, 0]], ids=["whole", "rows"])
@pytest.mark.parametrize("rate", [RATE, np.full(5, RATE)], ids=["shared", "each"])
def test_each_sample_is_a_call(given: np.ndarray, rate: np.ndarray) -> None:
    source = open_source({"input": given, "state": STATE, "rate": rate}, VOICE)
    found = calls(source)
    for row, call in enumerate(found):
        np.testing.assert_array_equal(call["input"], INPUT[row])
        np.testing.assert_array_equal(call["state"], STATE[row])
        assert call["rate"].shape == ()
        assert call["rate"].dtype == WHOLE
        assert call["rate"] == 16000
    alike = "; 'rate' is the same in all" if not rate.ndim else ""
    assert source.notes == (f"each sample is one call of the model{alike}",)


def test_archives_and_functions_are_read_alike(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", input=INPUT, state=STATE, rate=RATE)

    def batches() -> object:
        for start in (0, 3):
            part = slice(start, start + 3)
            yield {"input": INPUT[part], "state": STATE[part], "rate": 16000}

    stored = calls(open_source(str(tmp_path / "data.npz"), VOICE))
    source = open_source(batches, VOICE)
    yielded = [batch.call(row) for batch in source.batches(2) for row in range(batch.count)]
    assert source.notes == ("each sample is one call of the model; 'rate' is the same in all",)
    assert len(yielded) == len(stored) == 5
    for one, other in zip(stored, yielded, strict=True):
        assert {name: array.tolist() for name, array in one.items()} == {
            name: array.tolist() for name, array in other.items()
        }


def test_a_batch_of_a_function_is_left_out_only_if_all_of_it_is_empty() -> None:
    inputs = [
        InputSpec("x", FLOAT, (None, 3)),
        InputSpec("t", FLOAT, (None, 3)),
        InputSpec("least", FLOAT, (1,)),
    ]

    def batches(*sizes: tuple[int, int]) -> object:
        for x, t in sizes:
            yield {
                "x": np.zeros((x, 3), np.float32),
                "t": np.zeros((t, 3), np.float32),
                "least": np.float32(0.3),
            }

    found = open_source(lambda: batches((2, 2), (0, 0), (1, 1)), inputs)
    assert sum(batch.count for batch in found.batches(8)) == 3
    for sizes, name in (((2, 0), "t"), ((0, 2), "x")):
        with pytest.raises(DataError, match=f"batch 2: '{name}' has no samples"):
            open_source(lambda: batches((2, 2), sizes), inputs)  # noqa: B023


def test_samples_of_a_function_may_differ_in_length() -> None:
    lengths = (3, 3, 7)

    def batches() -> object:
        for length in lengths:
            yield {"x": np.zeros((1, length, 2, 4), np.float32), "h": np.zeros((1, 1, 2, 5), np.float32)}

    inputs = [InputSpec("x", FLOAT, (None, None, 4)), InputSpec("h", FLOAT, (1, None, 5))]
    found = list(open_source(batches, inputs).batches(8))
    assert [batch.call(row)["x"].shape for batch in found for row in range(batch.count)] == [
        (length, 2, 4) for length in lengths
    ]


def test_an_axis_more_than_the_model_has_counts_samples() -> None:
    spec = [InputSpec("x", FLOAT, (80, 30))]
    whole = open_source({"x": np.zeros((5, 80, 30), np.float32)}, spec)
    assert {call["x"].shape for call in calls(whole)} == {(80, 30)}
    rows = open_source({"x": np.zeros((160, 30), np.float32)}, spec)
    assert not next(rows.batches(80)).per_call
    assert rows.notes == (
        "80 samples are one call, as the model's input 'x' [80, 30] says; if its first axis is no batch, "
        "give [samples, 80, 30]",
    )
    assert open_source({"x": np.zeros((7, 30), np.float32)}, [InputSpec("x", FLOAT, (1, 30))]).notes == ()


@pytest.mark.parametrize("least", [np.float32(0.3), np.array([0.3]), np.full(4, 0.3), np.full((4, 1), 0.3)])
def test_a_threshold_is_given_once_or_for_each_sample(least: np.ndarray) -> None:
    pixels = np.arange(4 * 60, dtype=np.uint8).reshape(4, 4, 5, 3)
    for single in ((), (1,)):
        inputs = [DETECTOR[0], InputSpec("least", FLOAT, single)]
        if np.ndim(least) > len(single) + 1:
            continue
        source = open_source({"image": pixels, "least": np.asarray(least)}, inputs, "scale=1/255")
        batch = source.read(np.arange(4))  # type: ignore[attr-defined]
        shape = (4, 1, 3, 4, 5) if batch.per_call else (4, 3, 4, 5)
        assert batch.inputs["image"].shape == shape
        np.testing.assert_allclose(
            batch.inputs["image"].reshape(4, 3, 4, 5), np.moveaxis(pixels, 3, 1) / 255, rtol=1e-6
        )
        np.testing.assert_allclose(batch.inputs["least"].reshape(-1), np.full(4, 0.3), rtol=1e-6)
        assert batch.inputs["least"].shape == ((4, *single) if batch.per_call else (4,))


def test_a_folder_of_pictures_feeds_a_model_of_one_picture(tmp_path: Path) -> None:
    pixels = np.arange(2 * 60, dtype=np.uint8).reshape(2, 4, 5, 3)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    source = open_source(str(tmp_path), [InputSpec("image", FLOAT, (3, 4, 5))], "scale=1")
    found = [call["image"] for call in calls(source)]
    np.testing.assert_array_equal(found, np.moveaxis(pixels, 3, 1))
    assert "each sample is one call of the model" in source.notes


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({"input": INPUT, "state": STATE}, "there is no array 'rate' for the model's input"),
        (
            {"input": INPUT, "state": STATE[:, :, 0], "rate": RATE},
            "array 'state' has shape [5, 2, 4], but each sample is one call of this model, whose input 'state' "
            "takes [2, ?, 4]; give [samples, 2, ?, 4]",
        ),
        (
            {"input": INPUT[:, :, :5], "state": STATE, "rate": RATE},
            "array 'input' has shape [5, 1, 5], but each sample is one call of this model, whose input 'input' "
            "takes [?, 6]; give [samples, ?, 6], or [samples, 6] for batches of one",
        ),
        ({"input": INPUT[:, 0, :5], "state": STATE, "rate": RATE}, "has samples of shape [5], but"),
        (
            {"input": INPUT, "state": STATE[:4], "rate": RATE},
            "array 'state' has 4 samples, but 'input' has 5; all need as many; 'state' is [samples, 2, ?, 4]",
        ),
        (
            {"input": INPUT, "state": STATE, "rate": np.array([8000, 16000])},
            "array 'rate' has 2 samples, but 'input' has 5; all need as many; 'rate' is [samples], or one number",
        ),
        ({"input": INPUT, "state": STATE[0, 0, 0, 0], "rate": RATE}, "array 'state' is a single number"),
        (
            {"input": INPUT, "state": STATE, "rate": np.array(16000.0)},
            "array 'rate' is float64, the model takes int64",
        ),
        ({"input": INPUT[:0], "state": STATE, "rate": RATE}, "array 'input' has no samples"),
    ],
)
def test_refusals(arrays: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(DataError) as refused:
        open_source(arrays, VOICE)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_refusals_of_a_function(tmp_path: Path) -> None:
    body = "def batches(): yield {'input': np.zeros((3, 6), np.float32), 'state': np.zeros((2, 3, 4), np.float32), 'rate': 1}"
    with pytest.raises(
        DataError, match=r"batch 1: 'state' has shape \[2, 3, 4\], but each sample is one call"
    ):
        open_source(loader(tmp_path, body), VOICE)


def test_labels_are_counted_by_samples() -> None:
    arrays = {"input": INPUT, "state": STATE, "rate": RATE}
    source = open_source(arrays | {"labels": np.arange(5)}, VOICE)
    assert [label for batch in source.batches(2) for label in batch.labels.tolist()] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="there are 5 samples"):
        open_source(arrays | {"labels": np.arange(4)}, VOICE)


def test_an_input_without_a_declared_shape_takes_rows_of_a_batch() -> None:
    unknown = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[] x) => (float[N, 3] y) { y = Neg(x) }'
    )
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    source = open_source({"x": np.zeros((5, 3), np.float32)}, model_inputs(unknown))
    assert [batch.inputs["x"].shape for batch in source.batches(4)] == [(4, 3), (1, 3)]
    assert not any(batch.per_call for batch in source.batches(4))
