"""A small network, and passes applied to it with samples: for tests of what layers answer."""

from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run
from tests.support.codebooks import mixed
from tests.support.int8 import Rows

NETWORK = """(float[N, 3, 8, 8] x) => (float[N, 10] y) {
    h = Conv <pads = [1, 1, 1, 1]> (x, a, ab)  r = Relu (h)  i = Conv <group = 32> (r, d, db)  s = Relu (i)
    j = Conv (s, e)  t = Relu (j)  f = Flatten (t)  g = MatMul (f, c)  y = Add (g, cb) }"""


def network(opset: int = 21) -> onnx.ModelProto:
    return build(
        NETWORK,
        opset,
        a=random(32, 3, 3, 3),
        ab=random(32),
        d=random(32, 1, 3, 3),
        db=random(32),
        e=random(24, 32, 1, 1),
        c=random(864, 10),
        cb=random(10),
    )


def context(original: onnx.ModelProto, **inputs: np.ndarray) -> Context:
    return Context(calibrator=StreamingCalibrator(Rows(**inputs)), original=original)


def applied(
    name: str, model: onnx.ModelProto, where: Context, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    instance: Pass = configure(find(name), options)
    return apply_pass(instance, model, where)


def saved(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The model as m.onnx in the folder, samples beside it, and the command line's arguments for them."""
    onnx.save(model, folder / "m.onnx")
    parts = {"calibration": 100, "eval": 60}
    for part, count in parts.items():
        np.savez(folder / f"{part}.npz", x=mixed(count, 3, 8, 8))
    return [given for part in parts for given in (f"--{part}", str(folder / f"{part}.npz"))]


def errors(x: np.ndarray, original: onnx.ModelProto, *others: onnx.ModelProto) -> list[float]:
    """Of the original's energy."""
    wanted = run(original, {"x": x})["y"]
    return [
        float(np.square(run(other, {"x": x})["y"] - wanted).mean() / np.square(wanted - wanted.mean()).mean())
        for other in others
    ]
