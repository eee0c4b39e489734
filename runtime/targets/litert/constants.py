"""The tensors of a network, and its constants: equal ones are written once."""

import numpy as np

from onnx_lathe.runtime.targets.litert.file import stored_bytes
from onnx_lathe.runtime.targets.litert.tensors import Quantization, Tensor

HALF_FROM = 16
"""Constants of fewer values stay float32: decoding them costs more than their bytes."""
LARGEST_HALF = float(np.finfo(np.float16).max)


class Constants:
    """`half`: float weights are stored as float16. `beyond_half`: names of those that do not fit it."""

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.tensors: list[Tensor] = []
        self.beyond_half: list[str] = []
        self._names: set[str] = set()
        self._constants: dict[tuple[object, ...], int] = {}

    def store(
        self, values: np.ndarray, type: str, label: str, quantization: Quantization | None = None
    ) -> int:
        """A constant. Returns its place."""
        raw = stored_bytes(values, type)
        key = (type, values.shape, quantization, hash(raw), len(raw))
        place = self._constants.get(key)
        if place is None or stored_bytes(self.stored_values(place), type) != raw:
            place = self.add(Tensor(label, type, tuple(values.shape), (), quantization, values))
            self._constants[key] = place
        return place

    def ints(self, values: object, label: str) -> int:
        """INT32 parameters of an operator, such as axes."""
        return self.store(np.asarray(values, np.int32), "INT32", label)

    def add(self, tensor: Tensor) -> int:
        """Adds a tensor, under a name that no other has. Returns its place."""
        name, number = tensor.name, 1
        while tensor.name in self._names:
            number += 1
            tensor.name = f"{name}_{number}"
        self._names.add(tensor.name)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def rename(self, place: int, name: str) -> None:
        """Gives a tensor a name that says more, if no other has it."""
        if name not in self._names:
            self._names.discard(self.tensors[place].name)
            self._names.add(name)
            self.tensors[place].name = name

    def stored_values(self, place: int) -> np.ndarray:
        """Of a constant."""
        values = self.tensors[place].values
        if values is None:
            raise ValueError(f"tensor {place} is no constant")
        return values

    def fits_half(self, values: np.ndarray, label: str) -> bool:
        """Whether a float constant is stored as float16."""
        if not self.half or values.size < HALF_FROM:
            return False
        fits = bool(np.abs(values[np.isfinite(values)]).max(initial=0.0) <= LARGEST_HALF)
        if not fits:
            self.beyond_half.append(label)
        return fits
