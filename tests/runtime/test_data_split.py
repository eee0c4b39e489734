"""Parts of data: splits, samples taken, and the fingerprints that tell data apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import InputSpec, open_source, overlap, split, take
from tests.support.data import COUNT, FLOAT, IMAGE, LABELS, PIXELS, archive, joined, loader, pictures


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
