"""Data in folders of pictures: their order, their classes, how they are fitted, and what is refused."""

import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_lathe.runtime.data import InputSpec, open_source
from onnx_lathe.runtime.data.images import quiet
from tests.support.data import COUNT, FLOAT, IMAGE, LABELS, PIXELS, TWO, joined, pictures, refusal


@pytest.mark.parametrize("shape", [(None, 1, 6, 4), (None, 6, 4, 1), (None, 6, 4)])
def test_flat_folder_in_natural_order(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    source = open_source(pictures(tmp_path), [InputSpec("image", FLOAT, shape)], "scale=1")
    assert (source.labelled, source.count) == (False, COUNT)
    whole = joined(source, 8)
    np.testing.assert_array_equal(whole.inputs["image"].reshape(PIXELS.shape), PIXELS)
    assert whole.inputs["image"].shape[1:] == shape[1:]


def test_class_folders(tmp_path: Path) -> None:
    spec = pictures(tmp_path, classes=5)
    source = open_source(spec, IMAGE, "scale=1", classes=5)
    assert source.description == f"23 pictures in 5 classes of {spec}"
    whole = joined(source, 8, seed=3)
    assert whole.labels is not None
    order = [np.flatnonzero((image[0] == PIXELS).all((1, 2)))[0] for image in whole.inputs["image"]]
    np.testing.assert_array_equal(whole.labels, LABELS[order])
    (Path(spec) / ".hidden").mkdir()
    (Path(spec) / "class5").mkdir()
    assert "has 6 class folders, the model has 5 classes" in refusal(spec, classes=5)
    assert open_source(spec, IMAGE, "scale=1", classes=6).labelled


def test_colour_stretch_resize_and_crop(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    (tmp_path / "flat").mkdir()
    picture.save(tmp_path / "flat" / "one.png")

    def only(text: str, *shape: int | None) -> np.ndarray:
        return joined(
            open_source(str(tmp_path / "flat"), [InputSpec("image", FLOAT, (None, *shape))], text), 1
        ).inputs["image"][0]

    stretched = np.asarray(picture.resize((10, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(only("scale=1", 3, 20, 10), stretched.transpose(2, 0, 1))
    resized = np.asarray(picture.resize((30, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(only("scale=1 resize=20 crop=16", 16, 16, 3), resized[2:18, 7:23])
    np.testing.assert_array_equal(only("scale=1 crop=20", 3, None, None), resized[:, 5:25].transpose(2, 0, 1))
    np.testing.assert_array_equal(only("scale=1", 1, 40, 60)[0], np.asarray(picture.convert("L")))
    for inputs, text, reason in (
        ((3, None, None), "scale=1", '--preprocess "resize=256 crop=224"'),
        ((3, 20, 10), "scale=1 crop=20", "makes pictures of 20x20, but the model takes [20, 10]"),
        ((2, 20, 10), "scale=1", "has 2 channels"),
        ((20,), "scale=1", "is no picture"),
    ):
        assert reason in refusal(str(tmp_path / "flat"), [InputSpec("image", FLOAT, (None, *inputs))], text)


def test_folder_refusals(tmp_path: Path) -> None:
    spec = pictures(tmp_path)
    assert "--preprocess" in refusal(spec, text=None)
    assert "a folder feeds a model with one input" in refusal(spec, TWO)
    (Path(spec) / "21.png").write_bytes((Path(spec) / "20.png").read_bytes()[:70])
    assert f"{Path(spec) / '21.png'}: is not a picture, or is damaged" in refusal(spec)
    Image.fromarray(PIXELS[0].astype(np.uint16)).save(Path(spec) / "21.png")
    assert "21.png: has 16 or 32 bits per pixel" in refusal(spec)
    (Path(spec) / "sub").mkdir()
    (Path(spec) / "20.png").rename(Path(spec) / "sub" / "20.png")
    assert "both beside and in subfolders" in refusal(spec)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    assert "holds no pictures" in refusal(str(tmp_path / "empty"))
    (Path(spec) / "sub" / "20.png").rename(tmp_path / "empty" / "class" / "20.png")
    assert "holds one subfolder only" in refusal(str(tmp_path / "empty"))


def test_readers_that_overlap_leave_warnings_as_they_were() -> None:
    def says(module: str) -> bool:
        with warnings.catch_warnings(record=True) as heard:
            warnings.warn_explicit("odd", UserWarning, "f.py", 1, module)
        return bool(heard)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = list(warnings.filters)
        first, second = ExitStack(), ExitStack()
        first.enter_context(quiet())
        second.enter_context(quiet())
        first.close()
        assert not says("PIL.Image")
        assert says("others")
        second.close()
        assert list(warnings.filters) == before
        assert says("PIL.Image")
