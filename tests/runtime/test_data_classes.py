"""Class folders: which name has which index, by number, by text or by a file; and what the report says of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.data import DataSource, InputSpec, open_source, read_classes

GREY = [InputSpec("image", np.dtype(np.float32), (None, 1, 2, 2))]


def folders(place: Path, *names: str) -> str:
    """A class folder of each name with one picture, whose pixels are the number of the name in the call."""
    for number, name in enumerate(names):
        (place / "set" / name).mkdir(parents=True)
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(place / "set" / name / "one.png")
    return str(place / "set")


def opened(spec: str, names: str | None = None) -> DataSource:
    if names is None:
        return open_source(spec, GREY, "scale=1")
    listed = Path(spec).parent / "classes.txt"
    listed.write_text(names, encoding="utf-8")
    return open_source(spec, GREY, "scale=1", None, read_classes(listed))


def index_of(source: DataSource) -> dict[int, int]:
    """Number of the name -> its label."""
    batch = next(iter(source.batches(100)))
    assert batch.labels is not None
    pixels = batch.inputs["image"][:, 0, 0, 0].astype(int)
    return dict(zip(pixels.tolist(), batch.labels.tolist(), strict=True))


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    source = opened(folders(tmp_path, *map(str, range(2, 12))))
    assert index_of(source) == {number: number for number in range(10)}
    assert "10 classes, from '2' (index 0) to '11' (index 9)" in source.notes
    assert not source.warnings


def test_words_are_in_the_order_of_text_and_numbered_ones_warn(tmp_path: Path) -> None:
    assert not opened(folders(tmp_path / "words", "dog", "cat")).warnings
    source = opened(folders(tmp_path / "numbered", "class_2", "class_10"))
    assert index_of(source) == {0: 1, 1: 0}
    assert "'class_10' has index 0 and stands before 'class_2'" in source.warnings[0]
    assert "--classes FILE" in source.warnings[0]


def test_a_file_gives_the_order(tmp_path: Path) -> None:
    source = opened(
        folders(tmp_path, "class_2", "class_10", "background"), "background\n class_2 \r\nclass_10\n\n"
    )
    assert index_of(source) == {0: 1, 1: 2, 2: 0}
    assert "3 classes, from 'background' (index 0) to 'class_10' (index 2)" in source.notes
    assert not source.warnings


@pytest.mark.parametrize(
    "names, reason",
    [
        ("cat\n", "the class folder 'dog' is not in"),
        ("cat\ndogs\n", "the class folder 'dog' is not in .*did you mean 'dogs'"),
        ("cat\ndog\nzebra\n", "the class 'zebra' of .* has no folder; make an empty one"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ("cat\ndog\ncat\n", "lines 1 and 3 are both 'cat'"),
        ("\n", "is empty; write one class name a line"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, names: str, reason: str) -> None:
    with pytest.raises(LatheError, match=reason) as refused:
        opened(folders(tmp_path, "cat", "dog"), names)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LatheError, match="cannot be read: No such file"):
        read_classes(tmp_path / "no.txt")
    (tmp_path / "no.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LatheError, match="no UTF-8 text"):
        read_classes(tmp_path / "no.txt")


def test_how_pictures_are_fitted_is_said(tmp_path: Path) -> None:
    spec = folders(tmp_path, "cat", "dog")

    def said(text: str, *size: int | None) -> str:
        return open_source(spec, [InputSpec("image", np.dtype(np.float32), (None, 1, *size))], text).notes[-1]

    assert said("scale=1", 3, 5).startswith(
        "pictures are stretched to 3x5 pixels (height x width), the model's input"
    )
    assert said("scale=1 resize=3x5", None, None) == "pictures are stretched to 3x5 pixels (height x width)"
    assert (
        said("scale=1, resize=8, crop=4", None, None)
        == "pictures are resized until the shorter side has 8 pixels, then the middle 4x4 is taken"
    )
    assert said("scale=1 crop=4", None, None).startswith(
        "pictures are resized until the shorter side has 4 pixels"
    )


def test_a_crop_of_height_and_width(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (20, 60), dtype=np.uint8))
    (tmp_path / "flat").mkdir()
    picture.save(tmp_path / "flat" / "line.png")

    def fed(text: str) -> np.ndarray:
        source = open_source(
            str(tmp_path / "flat"), [InputSpec("image", np.dtype(np.float32), (None, 1, None, None))], text
        )
        return next(iter(source.batches(1))).inputs["image"][0, 0]

    resized = np.asarray(picture.resize((30, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fed("scale=1, resize=10, crop=10x20"), resized[:, 5:25])
    black = fed("scale=1, resize=10, crop=10x40")
    np.testing.assert_array_equal(black[:, 5:35], resized)
    assert black.shape == (10, 40)
    assert not black[:, :5].any()
    assert not black[:, 35:].any()
    stretched = np.asarray(picture.resize((12, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fed("scale=1, resize=8x12"), stretched)


def test_fitting_of_what_is_no_folder_is_said(tmp_path: Path) -> None:
    source = open_source({"image": np.zeros((6, 1, 2, 2), np.uint8)}, GREY, "scale=1 crop=2")
    assert (
        "resize and crop of --preprocess are for folders of pictures and do nothing here"
        in source.warnings[0]
    )


@pytest.mark.parametrize("name", ["label", "Labels", "y", "y_train", "targets", "lables", "ground"])
def test_labels_under_another_name_warn(tmp_path: Path, name: str) -> None:
    arrays = {"image": np.zeros((6, 1, 2, 2), np.float32), name: np.arange(6), "mean": np.zeros(3)}
    np.savez(tmp_path / "data.npz", **arrays)
    source = open_source(str(tmp_path / "data.npz"), GREY)
    assert not source.labelled
    assert f"array '{name}' is not used, so the data is unlabelled; name it 'labels'" in source.warnings[0]


def test_other_arrays_do_not_warn(tmp_path: Path) -> None:
    image = np.zeros((6, 1, 2, 2), np.float32)
    np.savez(tmp_path / "data.npz", image=image, labels=np.arange(6), targets=np.arange(6))
    assert not open_source(str(tmp_path / "data.npz"), GREY).warnings
    np.savez(tmp_path / "data.npz", image=image, mean=np.zeros(3), std=np.zeros(3))
    assert not open_source(str(tmp_path / "data.npz"), GREY).warnings
