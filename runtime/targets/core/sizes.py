"""The sizes of inputs that a network is written for: fixed, or open between two."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.runtime.targets.core.facts import Shape

USUAL = {4: 224}
BETWEEN, ANY = ":", "~"
"""Between two shapes in the option shapes: from one to the other, or any, of which these are two."""
OTHERWISE = 64
"""The size at which a model is looked at whose own are open, by its rank. What is equal at another does not depend on
it.
"""
STEP = 32
"""By which that other is larger, and by as much more along each further axis, which tells height from width. Networks
halve their maps five times: all are multiples of 32.
"""


@dataclass(frozen=True)
class Sizes:
    """Shapes of all inputs, and others; a size that differs stays open."""

    first: Mapping[str, Shape]
    second: Mapping[str, Shape]

    @property
    def open(self) -> bool:
        return self.first != self.second

    def is_open(self, name: str) -> bool:
        return self.first[name] != self.second[name]

    def bounded(self, bounds: Mapping[str, tuple[Shape, Shape]]) -> tuple[dict[str, Shape], dict[str, Shape]]:
        """(least, greatest) shapes of all inputs."""
        least, greatest = (
            {name: bounds.get(name, (shape, shape))[place] for name, shape in self.first.items()}
            for place in (0, 1)
        )
        return least, greatest

    def fixed(self) -> "Sizes":
        return Sizes(self.first, self.first)

    def of_one_sample(self) -> "Sizes | None":
        """First sizes fixed, such as of a batch; None where that leaves nothing open, or fixes nothing."""
        second = {name: (*shape[:1], *self.second[name][1:]) for name, shape in self.first.items()}
        found = Sizes(self.first, second)
        return found if found.open and second != self.second else None

    def text(self, name: str, mark: str = ANY) -> str:
        """As the option shapes takes it: `1x3x224x224`, or two of them with the mark between."""
        shapes = dict.fromkeys((self.first[name], self.second[name]))
        return mark.join("x".join(map(str, shape)) for shape in shapes)


def parse(table: Mapping[str, int | str]) -> dict[str, tuple[Shape, Shape]]:
    """Input -> the shapes of `1x3x224x224`, `1x3x224x224:1x3x640x640` or with `~` between. Raises UsageError."""
    found = {}
    for name, value in table.items():
        shapes = [_shape(part) for part in str(value).replace(ANY, BETWEEN).split(BETWEEN)]
        if not 1 <= len(shapes) <= 2 or () in shapes or len({len(shape) for shape in shapes}) != 1:
            raise UsageError(
                f"option shapes, '{name}': takes one shape, or two between which sizes stay open, such as "
                f"1x3x224x224:1x3x640x640, or any with {ANY} in place of the colon, not '{value}'"
            )
        found[name] = (shapes[0], shapes[-1])
    return found


def ranges(table: Mapping[str, int | str]) -> dict[str, tuple[Shape, Shape]]:
    """Input -> the least and the greatest shape, of those whose open sizes stay between two."""
    between = {name: value for name, value in table.items() if BETWEEN in str(value)}
    return {
        name: (tuple(map(min, first, second)), tuple(map(max, first, second)))
        for name, (first, second) in parse(between).items()
    }


def _shape(text: str) -> Shape:
    try:
        sizes = tuple(int(size) for size in text.split("x"))
    except ValueError:
        return ()
    return sizes if sizes and min(sizes) > 0 else ()


def sizes_of(model: onnx.ModelProto, given: Mapping[str, tuple[Shape, Shape]]) -> Sizes:
    """The sizes to write a model for: those given, else its own, with a batch of 1 and usual sizes where they are
    open. Raises UsageError for a shape that does not fit the model.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    for name in given.keys() - inputs.keys():
        known = nearest(name, inputs) or "; it has " + ", ".join(inputs)
        raise UsageError(f"option shapes: the model has no input '{name}'{known}")
    first: dict[str, Shape] = {}
    second: dict[str, Shape] = {}
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in inputs.values() if _dims(value)} - {
        ""
    }
    for name, value in inputs.items():
        tensor = value.type.tensor_type
        dims = _dims(value)
        if name in given:
            for shape in given[name]:
                _check(name, dims, shape)
            first[name], second[name] = given[name]
        elif dims is None:
            raise UsageError(f"input '{name}' has no shape; give one with shapes={{{name}: 1x3x224x224}}")
        else:
            names = [dim.dim_param for dim in tensor.shape.dim]
            is_open = [not dim and axis > 0 and names[axis] not in batches for axis, dim in enumerate(dims)]
            size = USUAL.get(len(dims), OTHERWISE)
            first[name] = tuple(size if free else dim or 1 for free, dim in zip(is_open, dims, strict=True))
            second[name] = _larger(first[name], is_open)
    return Sizes(first, second)


def _dims(value: onnx.ValueInfoProto) -> list[int] | None:
    """0 for a size that is open, which some exporters write as -1; None if even the rank is."""
    tensor = value.type.tensor_type
    return [max(dim.dim_value, 0) for dim in tensor.shape.dim] if tensor.HasField("shape") else None


def _check(name: str, dims: list[int] | None, shape: Shape) -> None:
    if dims is None:
        return
    if len(dims) != len(shape):
        raise UsageError(f"option shapes: input '{name}' has {len(dims)} dimensions, not {len(shape)}")
    for axis, (size, wanted) in enumerate(zip(dims, shape, strict=True)):
        if size and size != wanted:
            raise UsageError(f"option shapes: dimension {axis} of input '{name}' is fixed at {size}")


def _larger(sizes: Shape, is_open: Sequence[bool]) -> Shape:
    """Other sizes, by another step along each open axis."""
    steps = itertools.count(STEP, STEP)
    return tuple(size + next(steps) if free else size for size, free in zip(sizes, is_open, strict=True))


def from_data(
    model: onnx.ModelProto,
    given: Mapping[str, tuple[Shape, Shape]],
    samples: Mapping[str, Shape],
    per_call: bool = False,
) -> dict[str, tuple[Shape, Shape]]:
    """For inputs with open sizes that `given` has not: the sizes of the data's samples, and larger ones. per_call: each
    sample is a call of the model, whose first axes are no batch.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        dims = _dims(value) or []
        sample = samples.get(value.name)
        if value.name in stored or value.name in given or sample is None or len(sample) != len(dims):
            continue
        is_open = [not size and (axis > 0 or per_call) for axis, size in enumerate(dims)]
        if not any(is_open):
            continue
        sizes = tuple(sample[axis] if free else dims[axis] or 1 for axis, free in enumerate(is_open))
        found[value.name] = (sizes, _larger(sizes, is_open))
    return found
