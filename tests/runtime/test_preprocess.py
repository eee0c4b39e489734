"""--preprocess: what is read, and what it does to stored arrays."""

import numpy as np
import pytest

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.runtime.data.preprocess import Preprocess, bind, parse
from onnx_lathe.runtime.files.signature import InputSpec

FLOAT, HALF, BYTE = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint8)


def spec(*shape: int | None, dtype: np.dtype = FLOAT) -> InputSpec:
    return InputSpec("image", dtype, (None, *shape))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)


def feed(stored: np.ndarray, wanted: InputSpec, text: str | None) -> np.ndarray:
    return bind(wanted, stored.shape[1:], stored.dtype, parse(text), "data.npz: array 'image'")(stored)


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, Preprocess()),
        ("  ", Preprocess()),
        ("scale=1/255", Preprocess((0.0,), (255.0,))),
        ("scale = 1", Preprocess((0.0,), (1.0,))),
        ("mean=127.5", Preprocess((127.5,), (1.0,))),
        ("std=58,57,57", Preprocess((0.0,), (58.0, 57.0, 57.0))),
        ("mean=125.3,123.0,113.9 std=63.0,62.1,66.7", Preprocess((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))),
        (
            "mean=1, 2, 3; std=4 ;resize=256;crop=224",
            Preprocess((1.0, 2.0, 3.0), (4.0,), None, 256, (224, 224)),
        ),
        ("resize=48x320", Preprocess(resize=(48, 320))),
        ("resize=64, crop=48x320", Preprocess(resize=64, crop=(48, 320))),
        ("scale=1/255,layout=NHWC", Preprocess((0.0,), (255.0,), "nhwc")),
    ],
)
def test_reads(text: str | None, expected: Preprocess) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text, reason",
    [
        ("scael=1", "no option 'scael'; did you mean 'scale'?"),
        ("brightness=1", "there are scale, mean"),
        ("scale", "'scale' is not name=value"),
        ("scale=", "scale takes numbers"),
        ("scale=1/0", "scale takes numbers"),
        ("scale=-1", "scale must be above 0"),
        ("scale=nan", "scale takes numbers"),
        ("scale=1e999999999", "scale takes numbers"),
        ("scale=1 2", "scale takes numbers"),
        ("std=0", "std must be above 0"),
        ("scale=1 std=2", "give either scale, or mean and std"),
        ("scale=1 scale=1", "names scale twice"),
        ("mean=1,2 std=1,2,3", "mean has 2 values and std 3"),
        (
            "mean=0.485,0.456,0.406 std=0.229,0.224,0.225",
            'write "mean=123.7,116.3,103.5 std=58.4,57.12,57.38"',
        ),
        ("layout=chw", "layout is nchw or nhwc"),
        ("crop=0", "crop takes a number of pixels"),
        ("resize=200 crop=224", "smaller than crop"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_scale_divides_exactly() -> None:
    stored = pixels(1, 4, 4)
    fed = feed(stored, spec(1, 4, 4), "scale=1/255")
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(fed, stored.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("wanted, axis", [(spec(3, 5, 4), 1), (spec(5, 4, 3), 3)])
def test_mean_and_std_follow_the_channels_of_the_graph(wanted: InputSpec, axis: int) -> None:
    stored = pixels(5, 4, 3)
    fed = feed(stored, wanted, "mean=125.3,123.0,113.9 std=63.0,62.1,66.7")
    expected = np.moveaxis((stored - np.array([125.3, 123.0, 113.9])) / np.array([63.0, 62.1, 66.7]), 3, axis)
    assert fed.flags.c_contiguous
    np.testing.assert_allclose(fed, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(np.float16, 5e-4), (np.float64, 1e-15)])
def test_scales_into_the_dtype_of_the_graph(dtype: type, tolerance: float) -> None:
    stored = pixels(1, 4, 4)
    fed = feed(stored, spec(1, 4, 4, dtype=np.dtype(dtype)), "scale=1/255")
    assert fed.dtype == dtype
    np.testing.assert_allclose(fed, stored / 255.0, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "sample, wanted, text, axes",
    [
        ((3, 6, 5), spec(3, 6, 5), "scale=1", (0, 1, 2, 3)),
        ((6, 5, 3), spec(3, 6, 5), "scale=1", (0, 3, 1, 2)),
        ((6, 5, 3), spec(3, None, None), "scale=1", (0, 3, 1, 2)),
        ((3, 6, 5), spec(6, 5, 3), "scale=1", (0, 2, 3, 1)),
        ((6, 5, 3), spec(None, None, None), "scale=1 layout=nhwc", (0, 3, 1, 2)),
        ((6, 5, 3), spec(None, None, None), "scale=1", (0, 1, 2, 3)),
        ((3, 3, 3), spec(3, 3, 3), "scale=1 layout=nchw", (0, 1, 2, 3)),
        ((3, 3, 3), spec(3, 3, 3), "scale=1 layout=nhwc", (0, 3, 1, 2)),
    ],
)
def test_layout(sample: tuple[int, ...], wanted: InputSpec, text: str, axes: tuple[int, ...]) -> None:
    stored = pixels(*sample)
    np.testing.assert_array_equal(feed(stored, wanted, text), stored.transpose(axes))


def test_grey_images_get_a_channel() -> None:
    stored = pixels(6, 5)
    np.testing.assert_array_equal(feed(stored, spec(1, 6, 5), "scale=1"), stored[:, None])
    np.testing.assert_array_equal(feed(stored, spec(6, 5, 1), "scale=1"), stored[..., None])
    np.testing.assert_array_equal(feed(stored, spec(6, 5), "scale=1"), stored)


def test_other_dtypes() -> None:
    floats = pixels(4).astype(np.float64) / 255
    # floats are fed as they are
    np.testing.assert_array_equal(feed(floats, spec(4), "scale=1/255"), floats.astype(np.float32))
    assert feed(floats.astype(">f4"), spec(4, dtype=HALF), None).dtype == np.float16
    bytes_for_bytes = pixels(4)
    np.testing.assert_array_equal(feed(bytes_for_bytes, spec(4, dtype=BYTE), None), bytes_for_bytes)
    assert feed(pixels(4).astype(np.int64), spec(4, dtype=np.dtype(np.int32)), None).dtype == np.int32


@pytest.mark.parametrize(
    "stored, wanted, text, reason",
    [
        (
            pixels(1, 4, 4),
            spec(1, 4, 4),
            None,
            'is uint8, the model takes float32: give --preprocess "scale=1/255"',
        ),
        (
            pixels(4).astype(np.int64),
            spec(4),
            "scale=1",
            "is int64, the model takes float32; convert it with .astype('float32')",
        ),
        (
            pixels(4).astype(np.float32),
            spec(4, dtype=np.dtype(np.int64)),
            None,
            "is float32, the model takes int64",
        ),
        (pixels(4).astype(bool), spec(4), None, "is bool"),
        (
            pixels(1, 4, 5),
            spec(1, 4, 4),
            "scale=1",
            "samples of shape [1, 4, 5], but the model's input 'image' takes [1, 4, 4]",
        ),
        (pixels(4, 4), spec(3, 4, 4), "scale=1", "samples of shape [4, 4]"),
        (pixels(16), spec(1, 4, 4), "scale=1", "samples of shape [16]"),
        (pixels(4, 4, 3), spec(3, 4, None), "scale=1 layout=nchw", "samples of shape [4, 4, 3]"),
        (pixels(3, 3, 3), spec(3, 3, 3), "scale=1", '--preprocess "layout=..."'),
        (
            pixels(1, 4, 4),
            spec(1, 4, 4),
            "mean=1,2,3 std=4",
            "gives 3 values per channel, but the model's input 'image' has 1 channels",
        ),
        (pixels(4), spec(4), "mean=1,2,3,4 std=4", "no channel axis"),
    ],
)
def test_refuses_what_does_not_fit(
    stored: np.ndarray, wanted: InputSpec, text: str | None, reason: str
) -> None:
    with pytest.raises(DataError) as refused:
        feed(stored, wanted, text)
    assert reason in str(refused.value)
    assert "data.npz: array 'image'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_pixel_is_not_ambiguous() -> None:
    stored = pixels(1, 1, 1)
    np.testing.assert_array_equal(feed(stored, spec(1, 1, 1), "scale=1"), stored)
