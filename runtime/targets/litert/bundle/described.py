"""What a written .tflite file takes and gives, in the terms of all bundles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.runtime.targets.bundle import classes, ports
from onnx_lathe.runtime.targets.bundle.examples import Examples
from onnx_lathe.runtime.targets.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.bundle.writing import Written
from onnx_lathe.runtime.targets.litert import reader
from onnx_lathe.runtime.targets.litert.package import version
from onnx_lathe.runtime.targets.litert.session import content_of

CHOICES = ("storage", "layout", "io")
"""Options of the target that its description names."""
VERIFIED = ("in", "worst_output", "relative_error", "allowed")
Arrays = Mapping[str, np.ndarray]


def written(
    path: Path,
    model: onnx.ModelProto,
    options: Any,
    verified: Mapping[str, Any] | None = None,
    examples: Examples | None = None,
) -> Written:
    """All that `bundle` wants to know of the file, which was written from the lowered `model` with the target's options.

    `verified`: what came of the comparison, `examples`: what was compared, in the layout of the file.
    """
    inputs, outputs = reader.ports(content_of(path), str(path))
    known = [[shared(port, model) for port in some] for some in (inputs, outputs)]
    return Written(
        target="litert",
        files=[path],
        inputs=known[0],
        outputs=known[1],
        pixels=pixels_of(options.preprocess, known[0]),
        classes=classes.split(options.classes),
        choices={name: getattr(options, name) for name in CHOICES},
        verified=None if verified is None else {name: verified[name] for name in VERIFIED},
        examples=None if examples is None else _in_the_models_order(examples, [*inputs, *outputs]),
        libraries={"ai-edge-litert": version()},
    )


def shared(port: reader.Port, model: onnx.ModelProto) -> ports.Port:
    """A port as all bundles describe it; `model`: the lowered one, whose axes are the file's."""
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    order = port.order or tuple(range(len(port.sizes)))
    kind = port.type.lower()
    found = values.get(port.name)
    declared = port.sizes if found is None or not found.HasField("shape") else _sizes(found.shape.dim)
    declared = declared if len(declared) == len(port.sizes) else port.sizes
    return ports.Port(
        tensor=port.name,
        name=port.name,
        shape=port.sizes,
        type=kind,
        axes=tuple(int(axis) for axis in np.argsort(order)),
        tensor_type=kind if found is None else _type(found.elem_type),
        tensor_shape=port.model_sizes,
        declared=tuple(declared[axis] for axis in order),
        scale=port.scale or None,
        zero_point=port.zero_point if port.scale else None,
    )


def _sizes(dims: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)


def _type(element: int) -> str:
    return ports.type_name(onnx.helper.tensor_dtype_to_np_dtype(element))


def _in_the_models_order(examples: Examples, known: Sequence[reader.Port]) -> Examples:
    orders = {port.name: port.order for port in known if port.order}

    def moved(values: Arrays) -> Arrays:
        return {
            name: value.transpose(orders[name]) if name in orders else value for name, value in values.items()
        }

    calls = [(moved(inputs), moved(outputs)) for inputs, outputs in examples.calls]
    return Examples(calls, examples.measure, examples.allowed, examples.floors)
