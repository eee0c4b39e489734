"""What the engine inspector says of a finished engine. Runs in the worker: some engines cannot be loaded by the machine
that built them, and then nothing of them is known here.
"""

import re
from typing import Any

from onnx_lathe.runtime.targets.tensorrt import dla

_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


def weights_bytes(text: str) -> int | None:
    """Bytes of the engine's weights, if this is the builder's record of them."""
    found = _WEIGHTS.search(text)
    return int(found[1]) if found else None


def inspected(trt: Any, logger: Any, plan: bytes, core: int | None = None) -> str | None:
    """The inspector's JSON; None where the engine cannot be loaded here. `core`: of the DLA that it was built for."""
    runtime = trt.Runtime(logger)
    if core is not None and dla.load_for(runtime, core):
        return None
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return str(text)
