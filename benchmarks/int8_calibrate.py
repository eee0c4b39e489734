"""One calibration in a process of its own, for its peak memory; started by int8_large.py. Prints the
seconds that int8 took.

    python benchmarks/int8_calibrate.py MODEL DATA.npz METHOD SAMPLES CORRECT

CORRECT: true or false, whether biases are corrected besides.
"""

import sys
import time

import onnx

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold.fold import Fold
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.runtime.data import open_source
from onnx_lathe.runtime.files.signature import model_inputs
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT


def main(path: str, data: str, method: str, samples: str, correct: str) -> None:
    model = onnx.load(path)
    source = open_source(data, model_inputs(model), "mean=127 std=128")
    context = Context(calibrator=StreamingCalibrator(source, limit=int(samples)), placement=PLACEMENT)
    graph = import_model(model)
    Fold().apply(graph, context)
    started = time.perf_counter()
    configure(Int8, {"method": method, "bias_correction": correct == "true"}).apply(graph, context)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
