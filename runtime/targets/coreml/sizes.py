"""The sizes of inputs that a package is for: fixed, or from one to another (RangeDim)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.runtime.targets.core.facts import Shape
from onnx_lathe.runtime.targets.core.sizes import ANY, BETWEEN, parse

USUAL = {4: 224}
OTHERWISE = 64
"""The size that stands for one that is open in the model, and that neither an option nor the data says."""
BATCH = "1:32"
STEP = 32
"""Networks halve their maps five times: where the bounds are that many apart, sizes between them are too."""


@dataclass(frozen=True)
class Sizes:
    """Of each input: `first`, the shape that the package is built for; `least` and `greatest`, between which it may be;
    `keys`: what each axis is known by, the same for axes of one name in the model; `assumed`: inputs whose open sizes
    nobody said.
    """

    first: Mapping[str, Shape]
    least: Mapping[str, Shape]
    greatest: Mapping[str, Shape]
    keys: Mapping[str, tuple[str, ...]]
    assumed: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        return self.least != self.greatest

    def second(self) -> dict[str, Shape]:
        """Other shapes between the bounds, to tell what depends on which size: axes that the model gives one name are
        larger by the same, all others by different steps.
        """
        larger: dict[str, int] = {}
        return {
            name: tuple(
                size if low == high else self._other(key, low, high, larger)
                for size, low, high, key in zip(
                    shape, self.least[name], self.greatest[name], self.keys[name], strict=True
                )
            )
            for name, shape in self.first.items()
        }

    def _other(self, key: str, low: int, high: int, larger: dict[str, int]) -> int:
        step = STEP if (high - low) % STEP == 0 else 1
        if key not in larger:
            taken = set(larger.values())
            free = [size for size in range(low + step, high + 1, step) if size - low not in taken]
            larger[key] = (free[0] if free else high) - low
        return min(low + larger[key], high)

    def fixed(self) -> "Sizes":
        return replace(self, least=self.first, greatest=self.first)

    def text(self, name: str) -> str:
        """As the option shapes takes it."""
        ends = dict.fromkeys((self.least[name], self.greatest[name]))
        return BETWEEN.join("x".join(map(str, shape)) for shape in ends)


def batch_range(text: int | str) -> tuple[int, int]:
    """(least, greatest) of `8` or `1:32`. Raises UsageError."""
    parts = str(text).split(BETWEEN)
    if not all(part.isdigit() and int(part) for part in parts) or len(parts) > 2:
        raise UsageError(
            f"option batch takes a number, or two with a colon between such as {BATCH}, not '{text}'"
        )
    low, high = int(parts[0]), int(parts[-1])
    if low > high:
        raise UsageError(f"option batch: {low} is more than {high}")
    return low, high


def parse_shapes(table: Mapping[str, int | str]) -> dict[str, tuple[Shape, Shape]]:
    """Input -> the least and the greatest shape. Raises UsageError."""
    for name, value in table.items():
        if ANY in str(value):
            raise UsageError(
                f"option shapes, '{name}': Core ML wants bounds of an open size: two shapes with a colon between, not '{value}'"
            )
    return {
        name: (tuple(map(min, first, second)), tuple(map(max, first, second)))
        for name, (first, second) in parse(table).items()
    }


def sizes_of(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[Shape, Shape]], batch: tuple[int, int]
) -> Sizes:
    """The sizes to write a model for: those given, else its own, with the `batch` where the first is open. Raises
    UsageError for a shape that does not fit the model.
    """
    inputs = model_inputs(model)
    for name in shapes.keys() - inputs.keys():
        others = nearest(name, inputs) or "; it has " + ", ".join(inputs)
        raise UsageError(f"option shapes: the model has no input '{name}'{others}")
    keys: dict[str, tuple[str, ...]] = {}
    least: dict[str, Shape] = {}
    greatest: dict[str, Shape] = {}
    assumed = []
    batches = {dims[0].dim_param for value in inputs.values() if (dims := _dims(value))} - {""}
    named = _named(inputs, shapes)
    for name, value in inputs.items():
        dims = _dims(value)
        if name in shapes:
            least[name], greatest[name] = shapes[name]
            _check(name, dims, *shapes[name])
        elif dims is None:
            raise UsageError(f"input '{name}' has no shape; give one with shapes={{{name}: 1x3x224x224}}")
        else:
            is_batch = [axis == 0 or dim.dim_param in batches for axis, dim in enumerate(dims)]
            known = _ends(dims, named)
            usual = USUAL.get(len(dims), OTHERWISE)
            least[name], greatest[name] = (
                tuple(
                    size[end] or (batch[end] if of_batch else usual)
                    for size, of_batch in zip(known, is_batch, strict=True)
                )
                for end in (0, 1)
            )
            if any(not size[0] and not of_batch for size, of_batch in zip(known, is_batch, strict=True)):
                assumed.append(name)
        keys[name] = tuple(
            dims[axis].dim_param or f"{name} {axis}" if dims else f"{name} {axis}"
            for axis in range(len(least[name]))
        )
    return Sizes(dict(least), least, greatest, keys, tuple(assumed))


def model_inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Without those that have a default value, which are written as constants."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in stored}


def from_data(
    model: onnx.ModelProto,
    given: Mapping[str, tuple[Shape, Shape]],
    samples: Mapping[str, Shape],
    batch: tuple[int, int],
    per_call: bool = False,
) -> dict[str, tuple[Shape, Shape]]:
    """For inputs with open sizes beside the batch that `given` has not: those of the data's samples. per_call: each
    sample is a call of the model, whose first axes are no batch.
    """
    found = {}
    inputs = model_inputs(model)
    named = _named(inputs, given)
    for name, value in inputs.items():
        dims, sample = _dims(value), samples.get(name)
        if name in given or dims is None or sample is None or len(sample) != len(dims):
            continue
        known = _ends(dims, named)
        if not any(not size[0] and (axis > 0 or per_call) for axis, size in enumerate(known)):
            continue
        ends = [
            tuple(
                size[end] or (batch[end] if axis == 0 and not per_call else sample[axis])
                for axis, size in enumerate(known)
            )
            for end in (0, 1)
        ]
        found[name] = (ends[0], ends[1])
    return found


def _named(
    inputs: Mapping[str, onnx.ValueInfoProto], given: Mapping[str, tuple[Shape, Shape]]
) -> dict[str, tuple[int, int]]:
    """What `given` says of the sizes that the model names."""
    found: dict[str, tuple[int, int]] = {}
    for name, ends in given.items():
        for dim, low, high in zip(_dims(inputs[name]) or (), *ends, strict=False):
            if dim.dim_param:
                found.setdefault(dim.dim_param, (low, high))
    return found


def _ends(
    dims: Sequence[onnx.TensorShapeProto.Dimension], named: Mapping[str, tuple[int, int]]
) -> list[tuple[int, int]]:
    """Least and greatest of each size, as far as it is known; 0 where it is not."""
    fixed = [max(dim.dim_value, 0) for dim in dims]
    return [
        (size, size) if size else named.get(dim.dim_param, (0, 0))
        for size, dim in zip(fixed, dims, strict=True)
    ]


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension] | None:
    tensor = value.type.tensor_type
    return list(tensor.shape.dim) if tensor.HasField("shape") else None


def _check(name: str, dims: list[onnx.TensorShapeProto.Dimension] | None, *shapes: Shape) -> None:
    for shape in shapes if dims is not None else ():
        if len(dims or ()) != len(shape):
            raise UsageError(
                f"option shapes: input '{name}' has {len(dims or ())} dimensions, not {len(shape)}"
            )
        for axis, (dim, wanted) in enumerate(zip(dims or (), shape, strict=True)):
            if dim.dim_value > 0 and dim.dim_value != wanted:
                raise UsageError(
                    f"option shapes: dimension {axis} of input '{name}' is fixed at {dim.dim_value}"
                )
