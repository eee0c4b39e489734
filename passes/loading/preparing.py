"""Prepares a model that was just read for the passes, and says what was done, in sentences for the report."""

from dataclasses import dataclass, field

import onnx

from onnx_lathe.passes.loading.functions import inline_functions
from onnx_lathe.passes.loading.modern import NEWEST_OLD, modernize
from onnx_lathe.passes.loading.traces import drop_traces, trace_bytes
from onnx_lathe.passes.loading.walk import standard_opset


@dataclass
class Prepared:
    """What was done to a model. `rewritten`: its nodes are others now, so somebody should compare what they
    compute.
    """

    notes: list[str] = field(default_factory=list)
    rewritten: bool = False


def prepare(model: onnx.ModelProto, keep_metadata: bool = False) -> Prepared:
    """Makes of the model, in place, one that passes can work on: initializers are no inputs at IR version 3,
    local functions are inlined, opsets 7 to 10 become 17, and what exporters wrote of the user's source code
    is dropped unless `keep_metadata`.

    Raises ModelError naming an operator that cannot be said at the newer opset.
    """
    done = Prepared()
    if model.ir_version < 4:
        _take_weights_off_inputs(model)
    for step in (inline_functions, modernize):
        if note := step(model):
            done.notes.append(note)
            done.rewritten = True
    if not keep_metadata and (note := drop_traces(model)):
        done.notes.append(note)
    return done


def is_ready(model: onnx.ModelProto, keep_metadata: bool) -> bool:
    """Whether `prepare` would leave the model as it is."""
    opset = standard_opset(model)
    if not keep_metadata and trace_bytes(model):
        return False
    return model.ir_version >= 4 and not model.functions and (opset is None or opset.version > NEWEST_OLD)


def _take_weights_off_inputs(model: onnx.ModelProto) -> None:
    """Up to IR version 3 every initializer is listed among the inputs, and none can be fed."""
    stored = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(fed)
    model.ir_version = 4
