"""Opens a network that was written earlier: its files are checked, and whatever ncnn might not survive is tried in a
process of its own first.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.bundle.description import digest
from onnx_lathe.runtime.targets.core.base import Reopened
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.dialect import MAGIC
from onnx_lathe.runtime.targets.ncnn.process import outputs_of
from onnx_lathe.runtime.targets.ncnn.running import Opened, Settings, package
from onnx_lathe.runtime.targets.ncnn.session import Session, description, ports_from_json


class TriedSession(Session):
    """Runs a sample of each new shape in a process of its own before one in this, where the files are loaded only
    when that went well.
    """

    def __init__(self, param: Path, settings: Settings) -> None:
        super().__init__(*ports_from_json(description(param)))
        self.param, self.weights, self.settings = param, param.with_suffix(".bin"), settings
        self._tried: set[tuple[tuple[int, ...], ...]] = set()

    def load(self) -> None:
        """Loads it now, where its sizes are known."""
        if all(None not in port.shape for port in self.inputs):
            self.sample({port.tensor: _zeros(port, self.param) for port in self.inputs})

    def sample(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._try(feeds)
        if self.opened is None:
            self.opened = Opened(self.param, self.weights, self.inputs, self.outputs, self.settings)
        return super().sample(feeds)

    def _try(self, feeds: Mapping[str, np.ndarray]) -> None:
        shapes = tuple(feeds[port.tensor].shape for port in self.inputs)
        if shapes in self._tried:
            return
        try:
            outputs_of(self.param, self.weights, self.inputs, self.outputs, feeds, self.settings)
        except TargetError as error:
            shown = ", ".join(f"'{port.tensor}' {list(feeds[port.tensor].shape)}" for port in self.inputs)
            named = "" if str(self.param.parent) in str(error) else f"{self.param}: "
            raise ModelError(f"{named}{error} (input {shown})") from error
        self._tried.add(shapes)


def reopen(param: Path, threads: int) -> Reopened:
    """Raises ModelError for files that are not what `Ncnn.build` wrote, TargetError without the package ncnn."""
    library = f"ncnn {package().__version__}"
    _check_param(param)
    weights = param.with_suffix(".bin")
    said = description(param)
    _check_weights(param, weights, said)
    size = param.stat().st_size + weights.stat().st_size
    session = TriedSession(param, Settings(threads=threads))
    session.load()
    return Reopened(session, library, size)


def _check_param(param: Path) -> None:
    """Lines of `.param` may be changed by hand; that it is one is all that is asked."""
    try:
        with param.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ModelError(f"{param}: {error.strerror}") from error
    if start.split()[:1] != [str(MAGIC).encode()]:
        raise ModelError(f"{param}: is no network of ncnn: the text does not begin with {MAGIC}")


def _check_weights(param: Path, weights: Path, said: Mapping[str, object]) -> None:
    """ncnn does not notice a file with too many bytes, nor the weights of another network of the same size."""
    try:
        found = digest(weights)
    except OSError as error:
        raise ModelError(f"{weights}: {error.strerror}; it holds the weights of {param.name}") from error
    files = said.get("files")
    wanted = files.get(weights.name) if isinstance(files, dict) else None
    if not isinstance(wanted, dict) or wanted == found:
        return
    if wanted.get("bytes") != found["bytes"]:
        reason = f"has {found['bytes']:,} bytes, not {wanted.get('bytes'):,}"
    else:
        reason = "has other weights"
    raise ModelError(
        f"{weights}: {reason}, so it was not written with {param.with_suffix('.json').name}, or not copied whole; "
        "copy the files again, together"
    )


def _zeros(port: Port, param: Path) -> np.ndarray:
    """Raises ModelError for sizes that no machine holds, as a damaged description may say."""
    shape = [size or 1 for size in port.shape]
    try:
        return np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(port.element))
    except (MemoryError, ValueError) as error:  # numpy's ValueError: more bytes than an address can count
        raise ModelError(
            f"{param.with_suffix('.json')}: input '{port.tensor}' {shape} does not fit into memory; copy the files "
            "again, together, or build for smaller sizes"
        ) from error
