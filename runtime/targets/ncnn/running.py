"""Runs a written network in the ncnn package, on this processor, one sample after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.ncnn.convert import Port

MISSING = "the package ncnn is not installed: pip install 'onnx-lathe[ncnn]'"


@dataclass(frozen=True)
class Settings:
    """What a net is loaded with. `half`: as phones compute, in float16 where the processor can."""

    threads: int = 1
    half: bool = False
    winograd: bool = True


DEFAULT = Settings()


class Opened:
    """A loaded network. Raises TargetError if ncnn is not installed, ModelError if it does not load the files."""

    def __init__(
        self,
        param: Path,
        weights: Path,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        settings: Settings | None = None,
    ) -> None:
        self.ncnn = package()
        self.inputs, self.outputs = inputs, outputs
        self.net = self.ncnn.Net()
        _set(self.net.opt, settings or DEFAULT)
        for load, path in ((self.net.load_param, param), (self.net.load_model, weights)):
            if load(str(path)) != 0:
                raise ModelError(f"{path}: ncnn {self.ncnn.__version__} does not load it")

    def sample(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by the model's names, shaped like its tensors, of one sample. Raises ModelError if ncnn cannot."""
        extractor = self.net.create_extractor()
        # a copy is counted by who holds it, which a layer that works in place asks; and its channels lie at multiples of
        # 16 bytes, as Crop expects (src/net.cpp; src/mat.h, channel_range)
        for port in self.inputs:
            array = np.ascontiguousarray(as_blob(feeds[port.tensor], port))
            extractor.input(port.blob, self.ncnn.Mat(array).clone())
        found = {}
        for port in self.outputs:
            failed, mat = extractor.extract(port.blob)
            if failed:
                raise ModelError(f"ncnn cannot compute its blob '{port.blob}' (error {failed})")
            found[port.tensor] = as_tensor(np.array(mat), port)
        return found


def package() -> Any:
    """The module ncnn. Raises TargetError if it is not installed."""
    try:
        import ncnn
    except ImportError as error:
        raise TargetError(MISSING) from error
    return ncnn


def as_blob(values: np.ndarray, port: Port) -> np.ndarray:
    """A tensor of the model with the dimensions of its blob."""
    dtype = np.float32 if port.floats else np.int32
    return values.reshape([values.shape[axis] for axis in port.axes] or [1]).astype(dtype)


def as_tensor(values: np.ndarray, port: Port) -> np.ndarray:
    """A blob with the dimensions of the model's tensor, the others are 1; and with its type."""
    sizes = [1] * len(port.shape)
    for place, axis in enumerate(port.axes):
        sizes[axis] = values.shape[place]
    if not port.floats:  # ncnn hands out all of four bytes as floats
        values = values.view(np.int32)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(port.element)
    if not np.issubdtype(dtype, np.floating):
        return values.reshape(sizes).astype(dtype)
    return values.reshape(sizes).copy()


def _set(options: Any, settings: Settings) -> None:
    """The options of a net, which count at loading."""
    options.num_threads = settings.threads
    options.use_vulkan_compute = False
    options.use_bf16_storage = False
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = settings.half
    options.use_winograd_convolution = settings.winograd
