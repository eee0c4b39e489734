"""Data sources: archives, folders and functions give the same batches on every reading; what is wrong is
refused in one line.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onnx_lathe.errors import DataError, LatheError
from onnx_lathe.runtime.data import Batch, DataSource, InputSpec, open_source, overlap, split, take

FLOAT = np.dtype(np.float32)
IMAGE = [InputSpec("image", FLOAT, (None, 1, 6, 4))]
TWO = [InputSpec("image", FLOAT, (None, 3)), InputSpec("ids", np.dtype(np.int32), (None,))]
COUNT = 23
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 4), dtype=np.uint8)
PIXELS[0, 0, :2] = 0, 255
LABELS = np.arange(COUNT) % 5


def archive(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def loader(folder: Path, body: str) -> str:
    """A file with `pixels` [23, 6, 4], `labels` [23] and this body, whose function is `batches`."""
    np.savez(folder / "stored.npz", pixels=PIXELS, labels=LABELS)
    source = f"import numpy as np\nstored = np.load({str(folder / 'stored.npz')!r})\npixels, labels = stored['pixels'], stored['labels']\n"
    (folder / "loader.py").write_text(source + body)
    return f"{folder / 'loader.py'}:batches"


def pictures(folder: Path, classes: int = 0) -> str:
    """One PNG per sample, in class folders or flat."""
    for number, pixels in enumerate(PIXELS):
        place = folder / "pictures" / (f"class{number % classes}" if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return str(folder / "pictures")


def joined(source: DataSource, size: int, seed: int | None = None) -> Batch:
    batches = list(source.batches(size, seed))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    names = batches[0].inputs
    return Batch(
        {name: np.concatenate([b.inputs[name] for b in batches]) for name in names},
        np.concatenate(labels) if labels else None,
    )


def refusal(
    spec: str, inputs: list[InputSpec] = IMAGE, text: str | None = "scale=1/255", classes: int | None = None
) -> str:
    with pytest.raises(LatheError) as refused:
        for _ in open_source(spec, inputs, text, classes).batches(8):
            pass
    message = str(refused.value)
    assert "\n" not in message
    return message


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
        ({"image": np.float32(1)}, "array 'image' has no samples"),
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
    assert "has no batch axis" in refusal(str(tmp_path), [InputSpec("image", FLOAT, ())])


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


def test_split_is_reproducible_and_apart(tmp_path: Path) -> None:
    rows = np.arange(1000, dtype=np.float32)[:, None]
    source = open_source(
        archive(tmp_path, x=rows, labels=np.arange(1000)), [InputSpec("x", FLOAT, (None, 1))]
    )
    parts, again, other = split(source, 1), split(source, 1), split(source, 2)
    seen = {
        name: set(joined(getattr(parts, name), 64).inputs["x"][:, 0])
        for name in ("train", "calibration", "evaluation")
    }
    assert (len(seen["train"]), len(seen["calibration"]), len(seen["evaluation"])) == (800, 512, 200)
    assert not seen["train"] & seen["evaluation"]
    assert seen["train"] | seen["evaluation"] == set(range(1000))
    assert seen["calibration"] < seen["train"]
    assert "800 samples train, 512 of these calibrate, 200 others evaluate" in parts.description
    assert parts.evaluation.fingerprint == again.evaluation.fingerprint != other.evaluation.fingerprint
    whole = joined(parts.evaluation, 64, seed=5)
    np.testing.assert_array_equal(whole.inputs["x"][:, 0], whole.labels)
    assert overlap(parts.train, parts.evaluation) == 0
    assert overlap(parts.train, parts.calibration) == 512
    assert overlap(source, parts.evaluation) == 200


def test_equal_samples_go_to_one_side_of_a_split(tmp_path: Path) -> None:
    values = np.repeat(np.arange(100, dtype=np.float32), 2)[:, None]
    parts = split(open_source(archive(tmp_path, x=values), [InputSpec("x", FLOAT, (None, 1))]))
    assert overlap(parts.train, parts.evaluation) == 0
    assert parts.train.count + parts.evaluation.count == 200


def test_split_refusals(tmp_path: Path) -> None:
    inputs = [InputSpec("x", FLOAT, (None, 1))]
    with pytest.raises(DataError, match="too few to split, at least 5"):
        split(open_source(archive(tmp_path, x=np.zeros((4, 1), np.float32)), inputs))
    five = split(open_source(archive(tmp_path, x=np.arange(5, dtype=np.float32)[:, None]), inputs))
    assert (five.train.count, five.evaluation.count) == (4, 1)
    with pytest.raises(DataError, match="nearly all samples are equal"):
        split(open_source(archive(tmp_path, x=np.zeros((5, 1), np.float32)), inputs))
    function = open_source(loader(tmp_path, "def batches(): yield np.zeros((9, 1), 'f')\n"), inputs)
    with pytest.raises(
        DataError, match="cannot be split; name data for each role with --train, --calibration and --eval"
    ):
        split(function)


def test_take(tmp_path: Path) -> None:
    by_class = open_source(archive(tmp_path, image=PIXELS, labels=np.sort(LABELS)), IMAGE, "scale=1")
    some = take(by_class, 10)
    assert some.count == 10
    assert set(joined(some, 4).labels) == set(range(5))  # type: ignore[arg-type]
    assert take(by_class, 23) is by_class
    source = open_source(
        loader(tmp_path, "def batches():\n  for s in range(0, 23, 5): yield pixels[s:s + 5]\n"),
        IMAGE,
        "scale=1",
    )
    for _ in range(2):
        np.testing.assert_array_equal(joined(take(source, 7), 3).inputs["image"][:, 0], PIXELS[:7])
    assert joined(take(source, 100), 3).count == COUNT


def test_fingerprints_follow_content_and_preprocessing(tmp_path: Path) -> None:
    def archived(pixels: np.ndarray, text: str = "scale=1") -> str:
        return open_source(archive(tmp_path, image=pixels), IMAGE, text).fingerprint

    first = archived(PIXELS)
    assert archived(PIXELS.copy()) == first
    assert len({first, archived(PIXELS[::-1]), archived(PIXELS, "scale=1/255")}) == 3
    spec = pictures(tmp_path)
    before = open_source(spec, IMAGE, "scale=1")
    assert open_source(spec, IMAGE, "scale=1").fingerprint == before.fingerprint
    assert overlap(before, open_source(spec, IMAGE, "scale=1/255")) == COUNT
    Image.fromarray(PIXELS[::-1][0]).convert("RGB").save(Path(spec) / "3.png")
    assert open_source(spec, IMAGE, "scale=1").fingerprint != before.fingerprint
    function = loader(tmp_path, "def batches(): yield pixels\n")
    one = open_source(function, IMAGE, "scale=1")
    assert overlap(one, open_source(function, IMAGE, "scale=1")) == 1
    other = open_source(loader(tmp_path, "def batches(): yield pixels[1:]\n"), IMAGE, "scale=1")
    assert overlap(one, other) == overlap(one, before) == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), size=st.integers(1, 20))
def test_batches_of_any_size_hold_every_sample_once(tmp_path: Path, sizes: list[int], size: int) -> None:
    body = f"def batches():\n  at = 0\n  for n in {sizes}:\n    yield np.arange(at, at + n)\n    at += n\n"
    source = open_source(loader(tmp_path, body), [InputSpec("n", np.dtype(np.int64), (None,))])
    assert joined(source, size).inputs["n"].tolist() == list(range(sum(sizes)))
    assert all(batch.count == size for batch in list(source.batches(size))[:-1])
