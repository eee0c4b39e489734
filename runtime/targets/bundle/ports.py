"""What goes in and out of a written file, beside the tensors of the model that it was written of."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

TYPES = tuple(
    ["float16", "float32", "float64", "bfloat16", "bool"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
"""NumPy's names of the elements that a port may hold."""
Sizes = tuple[int | None, ...]
"""None: open, the caller's choice."""


@dataclass(frozen=True)
class Port:
    """An input or output of a written file.

    `name`, `type` and `shape` are the file's; `tensor`, `tensor_type` and `tensor_shape` those of the model, at the sizes
    that it was written for, and `declared` the shape as the model says it. `axes`: for each dimension in the file, the
    model's axis: (0, 2, 3, 1) for a file that holds [N, C, H, W] as [N, H, W, C]. An axis that is not among them has
    one element. `scale` and `zero_point`: of a port that holds integers for real numbers, real = scale * (q - zero_point).
    `least` and `greatest`: where open sizes are bounded, the shapes of the model's tensor that bound them.
    """

    tensor: str
    name: str
    shape: Sizes
    type: str
    axes: tuple[int, ...]
    tensor_type: str
    tensor_shape: Sizes
    declared: Sizes
    scale: float | None = None
    zero_point: int | None = None
    least: tuple[int, ...] = ()
    greatest: tuple[int, ...] = ()

    @property
    def is_quantized(self) -> bool:
        return self.scale is not None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Port":
        """Raises ValueError or TypeError for what no port is: a file may be damaged or changed by hand."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        found = cls(**fields)
        check(found)
        return found


def check(port: Port) -> None:
    """Raises ValueError for a field that does not fit the others."""
    if not all(isinstance(name, str) and name for name in (port.tensor, port.name)):
        raise ValueError("a name is no text")
    sizes = (port.shape, port.tensor_shape, port.declared)
    if not all(_is_size(size) for shape in sizes for size in shape):
        raise ValueError(f"a size of '{port.tensor}' is neither open nor a whole number from 1 on")
    rank = len(port.tensor_shape)
    if rank != len(port.declared) or not set(port.axes) <= set(range(rank)):
        raise ValueError(f"shape and axes of '{port.tensor}' do not fit")
    if port.shape != tuple(port.tensor_shape[axis] for axis in port.axes):
        raise ValueError(f"the shape of '{port.tensor}' in the file is not that of its axes")
    bounds = (*port.least, *port.greatest)
    if bounds and (len(port.least) != rank or len(port.greatest) != rank):
        raise ValueError(f"shape and bounds of '{port.tensor}' do not fit")
    if not all(_is_size(size) and size for size in bounds):
        raise ValueError(f"a bound of '{port.tensor}' is no whole number from 1 on")
    if port.type not in TYPES or port.tensor_type not in TYPES:
        raise ValueError(f"the type of '{port.tensor}' is not known")
    if (port.scale is None) != (port.zero_point is None):
        raise ValueError(f"'{port.tensor}' has a scale or a zero-point, not both")


def _is_size(size: object) -> bool:
    return size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)


def ports_from_json(table: Mapping[str, Any]) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs) of a description. Raises ValueError, KeyError or TypeError for what is none."""
    inputs, outputs = ([Port.from_json(entry) for entry in table[key]] for key in ("inputs", "outputs"))
    if not inputs or not outputs:
        raise ValueError("there is no input, or no output")
    return inputs, outputs


def type_name(dtype: Any) -> str:
    """NumPy's name of a type, also of those that ml_dtypes adds."""
    return "bfloat16" if dtype == ml_dtypes.bfloat16 else np.dtype(dtype).name


def open_to(shape: Sequence[int | None]) -> Sizes:
    """Whole numbers of Python, which JSON can hold."""
    return tuple(None if size is None else int(size) for size in shape)
