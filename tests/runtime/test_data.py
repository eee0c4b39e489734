"""Data in archives: the same batches on every reading; what is wrong is refused in one line."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.runtime.data import InputSpec, open_source
from tests.support.data import COUNT, FLOAT, IMAGE, LABELS, PIXELS, TWO, archive, joined, refusal


@pytest.mark.parametrize("part", [None, "eval"])
def test_archive(tmp_path: Path, part: str | None) -> None:
    prefix = f"{part}/" if part else ""
    spec = archive(
        tmp_path,
        **{f"{prefix}image": PIXELS, f"{prefix}labels": LABELS.astype(np.uint8), "other/image": PIXELS[:1]},
    )
    source = open_source(f"{spec}:{part}" if part else spec, IMAGE, "scale=1/255", classes=5)
    assert (source.labelled, source.count) == (True, COUNT)
    assert source.description.startswith(f"23 labelled samples of {spec}")
    batches = list(source.batches(8))
    assert [batch.count for batch in batches] == [8, 8, 7]
    assert batches[0].inputs["image"].dtype == np.float32
    whole = joined(source, 8)
    assert whole.labels is not None
    assert whole.labels.dtype == np.int64
    np.testing.assert_array_equal(whole.labels, LABELS)
    np.testing.assert_array_equal(whole.inputs["image"], PIXELS[:, None].astype(np.float32) / np.float32(255))


def test_archive_of_several_inputs(tmp_path: Path) -> None:
    vectors, ids = PIXELS[:, :3, 0], np.arange(COUNT, dtype=np.int64)
    whole = joined(open_source(archive(tmp_path, image=vectors, ids=ids), TWO, "scale=1/255"), 10)
    assert whole.labels is None
    np.testing.assert_array_equal(whole.inputs["image"], vectors.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(whole.inputs["ids"], ids)
    assert whole.inputs["ids"].dtype == np.int32


def test_float_pixels_are_scaled_only_if_they_are_pixels(tmp_path: Path) -> None:
    spec = archive(tmp_path, image=PIXELS.astype(np.float64))
    np.testing.assert_array_equal(
        joined(open_source(spec, IMAGE, "scale=1/255"), 9).inputs["image"][:, 0], PIXELS / np.float32(255)
    )
    np.testing.assert_array_equal(joined(open_source(spec, IMAGE), 9).inputs["image"][:, 0], PIXELS)
    assert "holds 0..1, not pixels 0..255" in refusal(
        archive(tmp_path, image=PIXELS.astype(np.float32) / 255)
    )


def test_same_seed_same_order(tmp_path: Path) -> None:
    source = open_source(archive(tmp_path, image=PIXELS, labels=LABELS), IMAGE, "scale=1")
    plain, first, again, other = (joined(source, 7, seed) for seed in (None, 1, 1, 2))
    np.testing.assert_array_equal(first.inputs["image"], again.inputs["image"])
    assert not np.array_equal(first.inputs["image"], other.inputs["image"])
    assert first.labels is not None
    order = [np.flatnonzero((image[0] == PIXELS).all((1, 2)))[0] for image in first.inputs["image"]]
    assert sorted(order) == list(range(COUNT))
    np.testing.assert_array_equal(first.labels, LABELS[order])
    np.testing.assert_array_equal(plain.inputs["image"][:, 0], PIXELS)


@pytest.mark.parametrize(
    "arrays, reason",
    [
        (
            {"images": PIXELS},
            "has no array 'image' for the model's input; did you mean 'images'?; it has images",
        ),
        ({"train/image": PIXELS, "eval/image": PIXELS}, "has parts eval, train; name one, such as"),
        ({"image": PIXELS[:0]}, "array 'image' has no samples"),
        ({"image": np.float32(1)}, "array 'image' is a single number"),
        ({"image": PIXELS[:, :5]}, "samples of shape [5, 4], but the model's input 'image' takes [1, 6, 4]"),
        ({"image": PIXELS.astype(np.int64)}, "is int64, the model takes float32"),
        ({"image": PIXELS.astype(object)}, "array 'image' holds Python objects"),
        ({"image": np.where(PIXELS > 5, PIXELS, np.nan)}, "has NaN in sample"),
        ({"image": PIXELS, "labels": LABELS[:9]}, "array 'labels' has shape [9], but there are 23 samples"),
        (
            {"image": PIXELS, "labels": LABELS.astype(float)},
            "array 'labels' is float64, wanted are class numbers",
        ),
        ({"image": PIXELS, "labels": np.eye(5)[LABELS]}, "one-hot rows need .argmax(1)"),
        ({"image": PIXELS, "labels": LABELS - 1}, "array 'labels' holds -1, wanted are class numbers 0 to 3"),
        ({"image": PIXELS, "labels": LABELS}, "array 'labels' holds 4, wanted are class numbers 0 to 3"),
    ],
)
def test_archive_refusals(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    spec = archive(tmp_path, **arrays)
    message = refusal(spec, classes=4)
    assert reason in message
    assert message.startswith(spec)


def test_archive_refusals_by_option_and_part(tmp_path: Path) -> None:
    spec = archive(tmp_path, **{"train/image": PIXELS, "train/labels": LABELS})
    assert '--preprocess "scale=1/255"' in refusal(f"{spec}:train", text=None)
    assert "has no part 'trian'; did you mean 'train'?; it has train" in refusal(f"{spec}:trian")
    assert "has no array 'train/ids'" in refusal(f"{spec}:train", TWO)
    assert "no such file" in refusal(str(tmp_path / "missing.npz:train"))
    bytes_in = [InputSpec("image", np.dtype(np.uint8), (None, 1, 6, 4))]
    assert "leave scale, mean and std out" in refusal(f"{spec}:train", bytes_in)
    np.testing.assert_array_equal(
        joined(open_source(f"{spec}:train", bytes_in), 9).inputs["image"][:, 0], PIXELS
    )
    vectors = PIXELS[:, :3, 0].astype(np.float32)
    assert "array 'ids' has 4 samples, but 'image' has 23" in refusal(
        archive(tmp_path, image=vectors, ids=np.arange(4)), TWO
    )
    assert "no input's array is" in refusal(archive(tmp_path, image=vectors, ids=np.arange(COUNT)), TWO)
    assert "holds 0..4000000000, the model takes int32" in refusal(
        archive(tmp_path, image=vectors, ids=np.linspace(0, 4e9, COUNT).astype(np.int64)), TWO, None
    )


def test_unlabelled_archive_tells_of_arrays_it_does_not_use(tmp_path: Path) -> None:
    source = open_source(archive(tmp_path, image=PIXELS, targets=LABELS), IMAGE, "scale=1")
    assert not source.labelled
    assert source.description.endswith("(arrays not used: targets)")


def test_damaged_archives(tmp_path: Path) -> None:
    content = Path(archive(tmp_path, image=PIXELS)).read_bytes()
    path = tmp_path / "damaged.npz"
    for damaged in (b"", b"no archive", content[:-30], content[: len(content) // 2]):
        path.write_bytes(damaged)
        assert "is not a .npz archive, or is truncated" in refusal(str(path))
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    assert "array 'image' cannot be read (Bad CRC-32" in refusal(str(path))
    with zipfile.ZipFile(tmp_path / "data.npz") as good, zipfile.ZipFile(path, "w") as bad:
        bad.writestr("image.npy", good.read("image.npy").replace(b"(23, 6, 4)", b"(99, 9, 9)"))
    assert "its size does not match its shape" in refusal(str(path))


@pytest.mark.parametrize("spec", ["C:\\data.npz", "c:/data.npz", "C:\\data.npz:train", "data.npz"])
def test_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(spec) == f"{spec.removesuffix(':train')}: no such file"


def test_a_file_with_a_colon_in_its_name_wins(tmp_path: Path) -> None:
    Path(archive(tmp_path, image=PIXELS)).rename(tmp_path / "a:b.npz")
    assert open_source(str(tmp_path / "a:b.npz"), IMAGE, "scale=1").count == COUNT


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    assert "no such file or folder" in refusal(str(tmp_path / "data.h5"))
    assert "data is a .npz file, a folder of pictures, or file.py:function" in refusal(
        str(tmp_path / "data.csv")
    )
    assert "has no inputs" in refusal(str(tmp_path), [])
    assert "which is no picture" in refusal(str(tmp_path), [InputSpec("image", FLOAT, ())])
