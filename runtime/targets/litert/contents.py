"""A written network -> all of a file: with inputs and outputs of the type that is asked for, and metadata."""

import json
from collections.abc import Sequence
from typing import Any

import onnx

from onnx_lathe.metadata import read_channels_last
from onnx_lathe.runtime.targets.litert.convert import Conversion
from onnx_lathe.runtime.targets.litert.file import Contents
from onnx_lathe.runtime.targets.litert.reader import DESCRIPTION
from onnx_lathe.runtime.targets.litert.tensors import Operator, Tensor
from onnx_lathe.runtime.targets.litert.versions import least_runtime
from onnx_lathe.version import VERSION

MIN_RUNTIME, MIN_RUNTIME_BYTES = "min_runtime_version", 16


def contents_of(model: onnx.ModelProto, written: Conversion, options: Any) -> Contents:
    """`options`: the target's."""
    operators = list(written.network.operators)
    inputs, outputs = list(written.inputs), list(written.outputs)
    if options.io == "int8":
        inputs, operators = _stored_inputs(inputs, operators)
        outputs, operators = _stored_outputs(outputs, operators)
    tensors, operators, places = _used(written.network.tensors, operators, [*inputs, *outputs])
    metadata = {DESCRIPTION: _description(model, written, options)}
    if least := least_runtime(operators):
        metadata[MIN_RUNTIME] = least.encode().ljust(MIN_RUNTIME_BYTES, b"\0")
    return Contents(
        tensors,
        operators,
        [(name, places[place]) for name, place in inputs],
        [(name, places[place]) for name, place in outputs],
        metadata,
        f"written by Lathe {VERSION}",
    )


def _stored_inputs(
    inputs: Sequence[tuple[str, int]], operators: Sequence[Operator]
) -> tuple[list[tuple[str, int]], list[Operator]]:
    """Inputs that nothing but a QUANTIZE reads are what it writes."""
    kept, found = list(operators), list[tuple[str, int]]()
    for name, place in inputs:
        readers = [one for one in kept if place in one.inputs]
        if len(readers) == 1 and readers[0].code == "QUANTIZE":
            kept.remove(readers[0])
            place = readers[0].outputs[0]
        found.append((name, place))
    return found, kept


def _stored_outputs(
    outputs: Sequence[tuple[str, int]], operators: Sequence[Operator]
) -> tuple[list[tuple[str, int]], list[Operator]]:
    """Outputs that a DEQUANTIZE writes, and nobody else reads, are what it reads."""
    kept, found = list(operators), list[tuple[str, int]]()
    for name, place in outputs:
        writer = next((one for one in kept if place in one.outputs), None)
        taken = {other for _, other in found}
        read = any(place in one.inputs for one in kept)
        if writer is not None and writer.code == "DEQUANTIZE" and not read and writer.inputs[0] not in taken:
            kept.remove(writer)
            place = writer.inputs[0]
        found.append((name, place))
    return found, kept


def _used(
    tensors: Sequence[Tensor], operators: Sequence[Operator], ends: Sequence[tuple[str, int]]
) -> tuple[list[Tensor], list[Operator], dict[int, int]]:
    """(tensors, operators, old place -> new one), without operators whose results nobody reads, and their tensors."""
    wanted = {place for _, place in ends}
    kept: list[Operator] = []
    for one in reversed(operators):
        if wanted.intersection(one.outputs):
            kept.append(one)
            wanted.update((*one.inputs, *one.outputs, *one.intermediates))
    places = {old: new for new, old in enumerate(sorted(place for place in wanted if place >= 0))}
    moved = [
        Operator(
            **{
                **vars(one),
                "inputs": [places.get(place, place) for place in one.inputs],
                "outputs": [places[place] for place in one.outputs],
                "intermediates": [places[place] for place in one.intermediates],
            }
        )
        for one in reversed(kept)
    ]
    return [tensors[old] for old in places], moved, places


def _fixed_batches(model: onnx.ModelProto, written: Conversion) -> list[str]:
    """Inputs and outputs whose batch the model has open, and the file at a size."""
    values = (*model.graph.input, *model.graph.output)
    declared = {value.name: value.type.tensor_type.shape.dim for value in values}
    found = []
    for name, place in (*written.inputs, *written.outputs):
        tensor, dims = written.network.tensors[place], declared.get(name, ())
        if dims and dims[0].dim_value <= 0 and tensor.shape and None not in tensor.signature[:1]:
            found.append(name)
    return found


def _description(model: onnx.ModelProto, written: Conversion, options: Any) -> bytes:
    """What an application may want to know, and what says how the file's axes lie to the model's."""
    found: dict[str, Any] = {"version": VERSION, "model": model.graph.name}
    if options.preprocess:
        found["preprocess"] = options.preprocess
    if fixed := _fixed_batches(model, written):
        found["fixed_batch"] = fixed
    turned = read_channels_last(model.metadata_props)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
    if turned:
        found["orders"] = {name: [0, ranks[name] - 1, *range(1, ranks[name] - 1)] for name in turned}
    return json.dumps(found, sort_keys=True).encode()
