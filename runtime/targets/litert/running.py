"""Runs a .tflite file in LiteRT's interpreter, on this processor."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.litert.package import interpreter_module
from onnx_lathe.runtime.targets.litert.reader import Port, ports, shown
from onnx_lathe.runtime.targets.litert.tensors import NUMPY

XNNPACK, BUILTIN, REFERENCE = "AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"
"""Kernels: as an application gets them, LiteRT's own fast ones, and the plain ones that say what is right."""
DELEGATE = "DELEGATE"


class Opened:
    """A loaded file. Raises TargetError without the package, ModelError if LiteRT does not load it.

    keep: tensors between operators can be read after a run.
    """

    def __init__(
        self, content: bytes, what: str, threads: int = 1, kernels: str = XNNPACK, keep: bool = False
    ) -> None:
        module = interpreter_module()
        self.inputs, self.outputs = ports(content, what)
        self.what = what
        with _refusing(what, "load it"), _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the memory that keeping tensors takes
            self.interpreter = module.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=module.OpResolverType[kernels],
                experimental_preserve_all_tensors=keep,
            )
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._ready = False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; in the file's types and layout. Raises ModelError where LiteRT cannot."""
        with _refusing(self.what, "run it"), _quiet():
            self._fit(feeds)
            for port in self.inputs:
                self.interpreter.set_tensor(port.place, _as_stored(feeds[port.name], port))
            self.interpreter.invoke()
            return {port.name: self.interpreter.get_tensor(port.place) for port in self.outputs}

    def _fit(self, feeds: Mapping[str, np.ndarray]) -> None:
        changed = False
        for port in self.inputs:
            shape = tuple(feeds[port.name].shape)
            known = self._shapes.get(port.place)
            if known is None:
                known = tuple(int(size) for size in self._detail(port)["shape"])
            if shape != known:
                self.interpreter.resize_tensor_input(port.place, shape)
                changed = True
            self._shapes[port.place] = shape
        if changed or not self._ready:
            self.interpreter.allocate_tensors()
            self._ready = True

    def _detail(self, port: Port) -> Mapping[str, Any]:
        return next(one for one in self.interpreter.get_input_details() if one["index"] == port.place)

    def tensor(self, place: int) -> np.ndarray:
        """What an operator wrote in the last run, of a file that was opened with keep."""
        with _refusing(self.what, "read its tensors"):
            return np.array(self.interpreter.get_tensor(place))

    def outside_delegate(self) -> list[tuple[str, str]]:
        """(name of the first result, operator) of what XNNPACK has left to other kernels; asked after a run."""
        found = self.interpreter._get_ops_details()  # there is no public way
        taken: set[int] = set()
        for one in found:
            if one["op_name"] == DELEGATE:
                taken |= self._replaced(one, found)
        left = [one for one in found if one["op_name"] != DELEGATE and int(one["index"]) not in taken]
        names = {int(one["index"]): str(one["name"]) for one in self.interpreter.get_tensor_details()}
        return [(names.get(int(one["outputs"][0]), ""), str(one["op_name"])) for one in left]

    def _replaced(self, delegate: Mapping[str, Any], all_ops: Sequence[Mapping[str, Any]]) -> set[int]:
        """Operators between what a delegate's kernel reads and what it writes."""
        sources = {int(place) for place in delegate["inputs"]}
        writers = {
            int(place): one for one in all_ops if one["op_name"] != DELEGATE for place in one["outputs"]
        }
        pending = [int(place) for place in delegate["outputs"]]
        found: set[int] = set()
        while pending:
            place = pending.pop()
            one = writers.get(place)
            if one is None or int(one["index"]) in found:
                continue
            found.add(int(one["index"]))
            pending.extend(int(name) for name in one["inputs"] if int(name) not in sources)
        return found


def _as_stored(value: np.ndarray, port: Port) -> np.ndarray:
    """Of another type than the file's; a float becomes an integer by the tensor's scale."""
    wanted = NUMPY.get(port.type)
    if wanted is None:
        raise ModelError(f"input '{port.name}' is {port.type}, which Lathe does not feed")
    if port.scale and np.issubdtype(value.dtype, np.floating):
        limits = np.iinfo(wanted)
        level = np.rint(value / np.float32(port.scale)) + port.zero_point
        return np.clip(level, limits.min, limits.max).astype(wanted)
    return np.ascontiguousarray(value, wanted)


def as_float(value: np.ndarray, port: Port) -> np.ndarray:
    """Of a stored tensor; others stay as they are."""
    if not port.scale or not np.issubdtype(value.dtype, np.integer):
        return value
    return ((value.astype(np.float32) - port.zero_point) * np.float32(port.scale)).astype(np.float32)


def check_feeds(inputs: Sequence[Port], feeds: Mapping[str, np.ndarray]) -> None:
    """Raises ModelError for what the file does not take."""
    for port in inputs:
        if port.name not in feeds:
            raise ModelError(f"input '{port.name}' [{shown(port.model_sizes)}] is not fed")
        given = feeds[port.name].shape
        wanted = port.model_sizes
        if len(given) != len(wanted) or any(
            size not in (None, have) for size, have in zip(wanted, given, strict=True)
        ):
            raise ModelError(f"input '{port.name}' takes [{shown(wanted)}], not {list(given)}")


@contextlib.contextmanager
def _refusing(what: str, act: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{what}: LiteRT cannot {act}: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without LiteRT's lines on standard error, such as that XNNPACK has been created."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
