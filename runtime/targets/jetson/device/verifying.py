"""The process that runs the engine on the stored inputs: figures per output, and times.

One JSON request on standard input; one answer, or refusal, on standard output.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.jetson.device.figures import differing, quantile, sqnr_db, top1, unanswered
from onnx_lathe.runtime.targets.tensorrt.cuda import Cuda, CudaError
from onnx_lathe.runtime.targets.tensorrt.execution import Engine, EngineError
from onnx_lathe.runtime.targets.tensorrt.messages import one_line
from onnx_lathe.runtime.targets.tensorrt.settings import RefusedError
from onnx_lathe.runtime.targets.tensorrt.worker import load, make_logger

WAYS = {
    "call": "a call with its copies",
    "cuda_graph": "the same as a CUDA graph",
    "gpu_alone": "the GPU alone",
}

Arrays = dict[str, np.ndarray]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # native code prints to standard output too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
    request = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = request.get("path", sys.path)
    try:
        message: dict[str, Any] = {"answer": verify(request)}
    except (RefusedError, EngineError, CudaError) as error:
        message = {"refusal": one_line(error)}
    print(json.dumps(message), file=answers, flush=True)
    os._exit(0)  # native destructors have nothing to add but a crash


def verify(request: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of every output over all stored calls, and of times of the first."""
    trt = load(request["library"])
    logger = make_logger(trt, None)
    try:
        engine = Engine(trt, logger, Cuda(), Path(request["engine"]).read_bytes(), request["dla"])
    except EngineError as error:
        raise EngineError(
            f"{Path(request['engine']).name} cannot be loaded ({error}): if another TensorRT or device built it, remove it "
            "and build again"
        ) from error
    ports = {port.name: port.dtype for port in engine.inputs}
    expected, found, feeds = [], [], []
    for stored in calls(Path(request["reference"]), request["inputs"], request["outputs"]):
        given = {name: stored[0][name].astype(dtype) for name, dtype in ports.items()}
        feeds.append(given)
        found.append(engine.run(given)[0])
        expected.append(stored[1])
    outputs = [compare(name, expected, found) for name in request["outputs"]]
    latency = {way: _times(engine, feeds[0], way, request["budget_s"]) for way in WAYS}
    shapes = {name: list(array.shape) for name, array in feeds[0].items()}
    return {
        "version": trt.__version__,
        "calls": len(feeds),
        "outputs": outputs,
        "latency": latency,
        "shapes": shapes,
    }


def calls(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> list[tuple[Arrays, Arrays]]:
    """Stored calls: inputs and outputs by name. In the file they have numbers, since a name may be anything."""
    with np.load(path, allow_pickle=False) as stored:
        count = 1 + max(int(key.split(".")[0]) for key in stored.files)
        return [
            (
                {name: stored[f"{call}.in{index}"] for index, name in enumerate(inputs)},
                {name: stored[f"{call}.out{index}"] for index, name in enumerate(outputs)},
            )
            for call in range(count)
        ]


def compare(name: str, expected: Sequence[Arrays], found: Sequence[Arrays]) -> dict[str, Any]:
    """An output over all calls. `sqnr_db` of floats; of integers and bools the share that `differ`. `rows_with_nan`, if there
    are any, have no class and count as other answers in `top1`.
    """
    wanted, got = (_joined([one[name] for one in arrays]) for arrays in (expected, found))
    if wanted.shape != got.shape:
        return {"name": name, "shapes": [list(wanted.shape), list(got.shape)]}
    if not np.issubdtype(wanted.dtype, np.floating):
        return {"name": name, "differ": differing(wanted, got)}
    share = top1(wanted, got)
    said = {
        "name": name,
        "sqnr_db": sqnr_db(wanted, got),
        "top1": share,
        "rows": len(wanted) if wanted.ndim else 1,
    }
    rows = 0 if share is None else unanswered(wanted, got)
    return said | ({"rows_with_nan": rows} if rows else {})


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if arrays[0].ndim and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    return np.concatenate([array.reshape(-1) for array in arrays])


def _times(engine: Engine, feeds: Arrays, way: str, budget_s: float) -> dict[str, Any]:
    """Milliseconds, or why there are none."""
    try:
        times = engine.times(feeds, way, budget_s).tolist()
    except (EngineError, CudaError) as error:
        return {"reason": one_line(error)}
    return {
        "median_ms": quantile(times, 0.5),
        "p99_ms": quantile(times, 0.99),
        "calls": len(times),
    }


if __name__ == "__main__":
    main()
