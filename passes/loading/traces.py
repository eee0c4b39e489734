"""Drops what exporters write of the user's source code into a model: stack traces with absolute paths and lines
of code, scopes, and the exporter's own graph.

torch.onnx writes it as metadata of nodes, values and graphs (`pkg.torch.onnx.stack_trace`, `namespace`), older
exporters as doc strings of nodes. It may be more than half of a small file, and need not be shown to whoever
gets the result. What somebody else wrote there stays, and so does Lathe's own (`lathe.*`), and all that the
model says of itself as a whole.
"""

import re
from collections.abc import Iterator
from typing import Any

import onnx

from onnx_lathe.passes.loading.walk import bodies, graphs

EXPORTERS = "pkg."
"""Begin of the keys under which exporters' packages write."""
OWN = "lathe."
SCOPES = "namespace"
"""torch.onnx names the modules around a node under this key."""
_SOURCE = re.compile(
    r'File "[^"]+", line \d+|\.py[:(]\d+|(?:^|[\s"\'=(,])(?:/home/|/Users/|/root/|[A-Za-z]:\\)'
)


def trace_bytes(model: onnx.ModelProto) -> int:
    """How many bytes of text `drop_traces` would drop."""
    return sum(len(text.encode()) for holder in _holders(model) for text in _traces(holder))


def drop_traces(model: onnx.ModelProto) -> str | None:
    """Drops them in place. Returns how many bytes; None if there was nothing."""
    dropped = 0
    for holder in _holders(model):
        if traces := _traces(holder):
            dropped += sum(len(text.encode()) for text in traces)
            _drop(holder)
    if not dropped:
        return None
    return (
        f"{dropped:,} bytes that the exporter wrote of your source code (metadata and documents of nodes) are left "
        "out; --keep-metadata keeps them"
    )


def _holders(model: onnx.ModelProto) -> Iterator[Any]:
    """Every part of the model that has metadata, but the sparse initializers."""
    parts: list[Any] = [*graphs(model.graph), *model.functions]
    parts += [body for function in model.functions for node in function.node for body in bodies(node)]
    yield model
    for part in parts:
        yield part
        yield from part.node
        yield from part.value_info
        if isinstance(part, onnx.GraphProto):
            yield from part.input
            yield from part.output
            yield from part.initializer


def _is_trace(holder: Any, key: str, value: str) -> bool:
    """Whether this entry of the holder's metadata goes. Of the model as a whole, a user may say anything."""
    if key.startswith(EXPORTERS):
        return True
    whole = isinstance(holder, onnx.ModelProto)
    return not whole and not key.startswith(OWN) and (key == SCOPES or _SOURCE.search(value) is not None)


def _traces(holder: Any) -> list[str]:
    """The texts to drop: keys and values of metadata, and the doc string of a part."""
    texts = [
        entry.key + entry.value
        for entry in holder.metadata_props
        if _is_trace(holder, entry.key, entry.value)
    ]
    if not isinstance(holder, onnx.ModelProto) and _SOURCE.search(holder.doc_string):
        texts.append(holder.doc_string)
    return texts


def _drop(holder: Any) -> None:
    entries = [(entry.key, entry.value) for entry in holder.metadata_props]
    del holder.metadata_props[:]
    for key, value in entries:
        if not _is_trace(holder, key, value):
            holder.metadata_props.add(key=key, value=value)
    if not isinstance(holder, onnx.ModelProto) and _SOURCE.search(holder.doc_string):
        holder.ClearField("doc_string")
