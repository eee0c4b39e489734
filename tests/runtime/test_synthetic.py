"""Made-up samples: shapes, scales and spectra of what they stand for, the same in every run."""

from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import InputSpec
from onnx_lathe.runtime.data.preprocess import parse
from onnx_lathe.runtime.data.synthetic import SyntheticSource, asked_for, open_synthetic, picture

FLOAT = np.dtype(np.float32)


def opened(
    *shapes: tuple[int | None, ...], spec: str = "synthetic:12", preprocess: str = ""
) -> SyntheticSource:
    inputs = [InputSpec(f"x{place}", FLOAT, shape) for place, shape in enumerate(shapes)]
    return open_synthetic(spec, inputs, parse(preprocess))


@pytest.mark.parametrize(
    ("shape", "sample"),
    [
        ((None, 3, 40, 56), (3, 40, 56)),
        ((None, 40, 56, 3), (40, 56, 3)),
        ((None, 1, 28, 28), (1, 28, 28)),
        ((None, 4, 32, 32), (4, 32, 32)),
        ((None, 3, None, None), (3, 224, 224)),
        ((None, 16, 7, 7), (16, 7, 7)),
        ((None, 8, None), (8, 64)),
        ((None, 20), (20,)),
    ],
)
def test_samples_have_the_shape_that_the_network_takes(
    shape: tuple[int | None, ...], sample: tuple[int, ...]
) -> None:
    source = opened(shape)
    batch = source.read(np.arange(12))
    values = batch.inputs["x0"]
    assert batch.labels is None
    assert values.shape == (12, *sample)
    assert values.dtype == FLOAT
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.7
    assert 0.5 < values.std() < 1.4
    assert (opened(shape).read(np.array([3])).inputs["x0"][0] == values[3]).all()
    assert not (values[0] == values[1]).all()


def test_pixels_are_scaled_as_preprocess_says_and_have_its_size() -> None:
    source = opened((None, 3, None, None), preprocess="scale=1/255; resize=48x320")
    values = source.read(np.arange(4)).inputs["x0"]
    assert values.shape == (4, 3, 48, 320)
    assert values.min() >= 0
    assert 0.8 < values.max() <= 1
    assert "3x48x320" in source.notes[0]
    assert opened((None, 3, None, None), preprocess="resize=64; crop=56").samples["x0"] == (3, 56, 56)


def test_pictures_have_the_spectrum_of_photographs() -> None:
    """Amplitudes fall about as 1/f: of white noise they would not, and neighbours would not be alike."""
    pixels = np.stack([picture(np.random.default_rng(seed), 3, 128, 128) for seed in range(16)]).astype(float)
    grey = pixels.mean(1) - pixels.mean((1, 2, 3))[:, None, None]
    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    bands = [(f > low) & (f <= 2 * low) for low in (0.016, 0.031, 0.063, 0.125, 0.25)]
    slope = np.polyfit(
        np.log([f[band].mean() for band in bands]), np.log([power[band].mean() for band in bands]), 1
    )[0]
    assert -3.2 < slope < -1.5
    colour = pixels - pixels.mean(1, keepdims=True)
    assert colour.std((2, 3)).mean() < 0.5 * grey.std((1, 2)).mean()


def test_counts_and_inputs_that_cannot_be_made_up_are_refused() -> None:
    for spec in ("synthetic:0", "synthetic:x", "synthetic:-3", "synthetic:", "synthetic:1000000"):
        with pytest.raises(DataError, match=f"^{spec}: behind the colon stands how many"):
            opened((None, 3, 8, 8), spec=spec)
    assert opened((None, 3), spec="synthetic").count == 128
    with pytest.raises(
        DataError, match=r"nothing can be made up for input 'ids', which takes int64; .* --fix-input ids="
    ):
        open_synthetic("synthetic", [InputSpec("ids", np.dtype(np.int64), (None, 8))], parse(""))
    with pytest.raises(DataError, match="no axis of samples"):
        opened((None, 3), (2, None, 128))


def test_a_path_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(map(asked_for, ("synthetic", "synthetic:30")))
    assert not any(map(asked_for, ("synthetic.npz", {"x": 1})))
    Path("synthetic").touch()
    assert not asked_for("synthetic")
