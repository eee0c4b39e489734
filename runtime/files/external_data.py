"""External data: tensors whose bytes lie in files beside the model, found, read and laid out.

What is read is checked before it is believed: sizes come from the shapes, and the files must lie in the
model's own folder. A model file that is a link has two of them, the link's and that of the file itself, as
for ONNX Runtime: a hub's cache keeps models and data as links into one folder of blobs.
"""

import os
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.reading import explaining
from onnx_lathe.runtime.files.tensors import VALUES, copy_fields, data_size, without_big

ALIGNMENT = 4096
"""Of a tensor in external data. Page size: ONNX Runtime maps data that begins on a page."""


def external_path(model: Path, tensor: TensorProto) -> Path:
    """The file that holds the data of a tensor of the model file `model`, links resolved."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    named = f"external data '{location}' of tensor '{tensor.name}'"
    if not location:
        raise ModelError(
            f"tensor '{tensor.name}' has external data without a location; export the model again"
        )
    try:
        folders = (model.parent.resolve(), model.resolve().parent)
        file = (folders[0] / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symbolic links, or a NUL in the name
        raise ModelError(f"{named} is not a usable path; export the model again") from error
    if _leads_out(location) or not any(file.is_relative_to(folder) for folder in folders):
        raise ModelError(
            f"{named} is outside the model's folder; copy the file itself, not a link, beside the model"
        )
    return file


def _leads_out(location: str) -> bool:
    """Whether the name itself, without any link, is of a place outside the folder."""
    return os.path.isabs(location) or os.path.normpath(location).split(os.sep)[0] == os.pardir


def locate(model: Path, tensor: TensorProto) -> tuple[Path, int, int]:
    """File, offset and size of the external data of a tensor of the model file `model`."""
    file, needed = external_path(model, tensor), data_size(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    named = f"external data of tensor '{tensor.name}'"
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", needed))
    except ValueError as error:
        raise ModelError(
            f"{named} has an offset or length that is no number; export the model again"
        ) from error
    if offset < 0 or length != needed:
        raise ModelError(
            f"{named} is {length} bytes at {offset}, but its shape asks for {needed}; export the model again"
        )
    with explaining(f"external data {file}: "):
        held = file.stat().st_size
    if offset + length > held:
        raise ModelError(
            f"{named}: {file.name} is too short, {held} bytes of at least {offset + length}; copy it again"
        )
    return file, offset, length


def read_external(model: Path, tensor: TensorProto) -> None:
    """Reads the data into a tensor of the model file `model` and makes it an ordinary one."""
    file, offset, length = locate(model, tensor)
    with explaining(f"external data {file}: "), open(file, "rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def externalized(model: ModelProto, location: str) -> tuple[ModelProto, list[tuple[int, TensorProto]]]:
    """The model with its big initializers in the file `location`, and those with their offsets there."""
    blobs: list[tuple[int, TensorProto]] = []
    end = 0

    def refer(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        nonlocal end
        offset, length = -(-end // ALIGNMENT) * ALIGNMENT, data_size(tensor)
        entry = graph.initializer.add(data_location=TensorProto.EXTERNAL)
        copy_fields(tensor, entry, leave_out=(*VALUES, "data_location", "external_data"))
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            entry.external_data.add(key=key, value=value)
        blobs.append((offset, tensor))
        end = offset + length

    return without_big(model, refer), blobs
