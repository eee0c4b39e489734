"""Sessions that also return tensors inside the model.

A tensor that is an output is never fused away, so it is what its own node computes, up to the rounding of float
arithmetic in another order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import onnxruntime

from onnx_lathe.runtime.running import ort


def tapped(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session of the model that also returns the named results of nodes of the main graph. Layers between Q/DQ
    pairs compute in float, as the graph says.

    Raises ModelError if ONNX Runtime cannot load the model so.
    """
    with _returning(model, tensors):
        return ort.session(model, integer=False)


@contextmanager
def _returning(model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[None]:
    """The names are outputs of the very model as long as the block lasts: a copy would copy its weights."""
    original = len(model.graph.output)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in present
    )
    try:
        yield
    finally:
        del model.graph.output[original:]
