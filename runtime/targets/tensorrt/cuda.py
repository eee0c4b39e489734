"""CUDA's driver as far as running an engine needs it, by ctypes: memory, one stream, events and graphs.

The driver's library is wherever TensorRT runs, desktop or Jetson, and what it exports keeps its form from version to
version. The runtime library has another name in every version and another place in every installation, and the
package cuda-bindings is not part of JetPack. This file imports numpy alone, so that it can be carried to a device.
"""

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import numpy as np

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MISSING = "no NVIDIA GPU or driver was found"

_NON_BLOCKING = 1
_RELAXED = 2
"""Capture does not mind what other threads do."""
_MAJOR, _MINOR = 75, 76
"""Attributes of a device: its compute capability."""

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_ulonglong), c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}
"""As cuda.h of CUDA 11.4 and later declares them; all return a CUresult."""


class CudaError(Exception):
    """A call that the driver refused; the message says which, and why."""


def has_gpu() -> bool:
    """Whether there is an NVIDIA driver, and a GPU that it can use; nothing is taken of it."""
    try:
        _driver()
    except CudaError:
        return False
    return True


def _driver() -> ctypes.CDLL:
    """The driver's library, which has a GPU. Raises CudaError where there is no driver or no GPU."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CudaError(MISSING) from error
    for name, types in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise CudaError(f"the NVIDIA driver is too old: it has no {name}") from error
        function.argtypes, function.restype = types, c_int
    count = c_int()
    try:
        _call(library, "cuInit", 0)
        _call(library, "cuDeviceGetCount", byref(count))
    except CudaError as error:
        raise CudaError(f"{MISSING} ({error})") from error
    if not count.value:
        raise CudaError(MISSING)
    return library


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    code = getattr(library, name)(*arguments)
    if code:
        text = c_char_p()
        library.cuGetErrorName(code, byref(text))
        raise CudaError(f"{name}: {(text.value or b'').decode() or f'error {code}'}")


class Cuda:
    """The first visible GPU, with its primary context, which is TensorRT's too, and one stream."""

    def __init__(self) -> None:
        """Raises CudaError where there is no driver or no GPU."""
        self._library = _driver()
        device, context, stream = c_int(), c_void_p(), c_void_p()
        self._call("cuDeviceGet", byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self._device = device
        self.stream = int(stream.value or 0)
        self._events = (self._event(), self._event())

    def _call(self, name: str, *arguments: Any) -> None:
        _call(self._library, name, *arguments)

    @property
    def name(self) -> str:
        """As NVIDIA calls it: NVIDIA GeForce RTX 3090."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode("utf-8", "replace")

    @property
    def compute(self) -> str:
        """Its architecture: sm86."""
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            found = c_int()
            self._call("cuDeviceGetAttribute", byref(found), attribute, self._device)
            numbers.append(found.value)
        return f"sm{numbers[0]}{numbers[1]}"

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the GPU, one at least."""
        address = c_ulonglong()
        self._call("cuMemAlloc_v2", byref(address), max(size, 1))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def pinned(self, size: int) -> np.ndarray:
        """Bytes of the host that the GPU reads and writes by itself, [size], uint8; `unpin` gives them back."""
        address = c_void_p()
        self._call("cuMemAllocHost_v2", byref(address), max(size, 1))
        return np.ctypeslib.as_array(ctypes.cast(address, POINTER(ctypes.c_uint8)), (max(size, 1),))

    def unpin(self, array: np.ndarray) -> None:
        self._call("cuMemFreeHost", array.ctypes.data)

    def to_device(self, address: int, source: np.ndarray, size: int) -> None:
        """Copies bytes in the stream; `source` is pinned."""
        if size:
            self._call("cuMemcpyHtoDAsync_v2", address, source.ctypes.data, size, self.stream)

    def to_host(self, target: np.ndarray, address: int, size: int) -> None:
        if size:
            self._call("cuMemcpyDtoHAsync_v2", target.ctypes.data, address, size, self.stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self.stream)

    def _event(self) -> c_void_p:
        event = c_void_p()
        self._call("cuEventCreate", byref(event), 0)
        return event

    def timed(self, work: Callable[[], None]) -> float:
        """Milliseconds on the GPU, from the first to the last that `work` puts into the stream."""
        first, last = self._events
        self._call("cuEventRecord", first, self.stream)
        work()
        self._call("cuEventRecord", last, self.stream)
        self.synchronize()
        found = c_float()
        self._call("cuEventElapsedTime", byref(found), first, last)
        return float(found.value)

    def capture(self, work: Callable[[], None]) -> "Graph":
        """What `work` puts into the stream, as a graph. Raises CudaError for what cannot be captured."""
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", self.stream, _RELAXED)
        try:
            work()
        except BaseException:
            # whatever went wrong, the stream must leave its capture
            self._library.cuStreamEndCapture(self.stream, byref(graph))
            raise
        self._call("cuStreamEndCapture", self.stream, byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self._library.cuGraphDestroy(graph)
        return Graph(self, executable)


class Graph:
    """Work that the GPU starts with one call."""

    def __init__(self, cuda: Cuda, executable: c_void_p) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self) -> None:
        self._cuda._call("cuGraphLaunch", self._executable, self._cuda.stream)

    def close(self) -> None:
        self._cuda._call("cuGraphExecDestroy", self._executable)
