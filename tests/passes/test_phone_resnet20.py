"""The phone form of a trained network, on images that it was not calibrated on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.placement import PHONE
from tests.support.phone import phone_form
from tests.support.placement import output, quantized

FOLDER = Path(__file__).resolve().parents[2] / "models" / "resnet20-cifar10"
CALIBRATED, JUDGED = 250, 500


@pytest.fixture(scope="module")
def images() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(training images, test images, their classes)."""
    sys.path.insert(0, str(FOLDER))
    try:
        import data

        test = [batch for _, batch in zip(range(2), data.test(), strict=False)]
        yield (
            next(iter(data.train()))[0][:CALIBRATED],
            np.concatenate([values for values, _ in test])[:JUDGED],
            np.concatenate([labels for _, labels in test])[:JUDGED],
        )
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("data", None)


def test_resnet20_keeps_its_accuracy(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    calibration, judged, labels = images
    model = onnx.load(FOLDER / "model.onnx")
    lowered, report = phone_form(quantized(model, PHONE, calibration, bias_correction=False)[0])
    assert report.metrics == {"float_layers": 0, "stored": 34}
    expected, found = output(model, judged), output(lowered, judged)
    top1 = [100 * float(np.mean(logits.argmax(1) == labels)) for logits in (expected, found)]
    assert top1[1] >= top1[0] - 0.5
    assert signal_to_noise_db(expected, found) > 30
