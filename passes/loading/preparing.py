"""Prepares a model that was just read for the passes, and says what was done, in sentences for the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_lathe.passes.graph.skeleton import optional_inputs, runtime_inputs
from onnx_lathe.passes.loading.fixing import described, fix_inputs
from onnx_lathe.passes.loading.functions import inline_functions
from onnx_lathe.passes.loading.modern import NEWEST_OLD, modernize
from onnx_lathe.passes.loading.order import is_sorted, sort_nodes
from onnx_lathe.passes.loading.traces import drop_traces, trace_bytes
from onnx_lathe.passes.loading.walk import standard_opset


@dataclass(frozen=True)
class Wishes:
    """What a user may say of how a model is read."""

    keep_metadata: bool = False
    """What exporters wrote of the user's source code stays."""
    drop_optional_inputs: bool = False
    """Initializers that are inputs too become weights: nobody will feed another value."""
    fix_inputs: Mapping[str, Any] = field(default_factory=dict)
    """Inputs that become constants, with their values (fixing.py)."""


@dataclass
class Prepared:
    """What was done to a model. `rewritten`: its nodes are others now, so somebody should compare what they
    compute.
    """

    notes: list[str] = field(default_factory=list)
    rewritten: bool = False
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Values of inputs that are constants now: the model given has to be fed with them."""


def prepare(model: onnx.ModelProto, wishes: Wishes = Wishes()) -> Prepared:
    """Makes of the model, in place, one that passes can work on: nodes stand behind what they read,
    initializers are no inputs at IR version 3, inputs that the wishes name become constants, local functions are
    inlined, opsets 7 to 10 become 17, and what exporters wrote of the user's source code is dropped, unless the
    wishes say otherwise.

    Raises ModelError naming an operator that cannot be said at the newer opset, or an input that cannot be a constant.
    """
    done = Prepared()
    if note := sort_nodes(model):
        done.notes.append(note)
    if model.ir_version < 4:
        _take_weights_off_inputs(model)
        model.ir_version = 4
    elif wishes.drop_optional_inputs and (taken := _take_weights_off_inputs(model)):
        what = "optional input is a weight now" if taken == 1 else "optional inputs are weights now"
        done.notes.append(f"{taken} {what}, which no caller can feed")
    if wishes.fix_inputs:
        done.fixed = fix_inputs(model, wishes.fix_inputs)
        done.notes += described(done.fixed)
        done.rewritten = True
    for step in (inline_functions, modernize):
        if note := step(model):
            done.notes.append(note)
            done.rewritten = True
    if not wishes.keep_metadata and (note := drop_traces(model)):
        done.notes.append(note)
    return done


def is_ready(model: onnx.ModelProto, wishes: Wishes) -> bool:
    """Whether `prepare` would leave the model as it is."""
    opset = standard_opset(model)
    if not wishes.keep_metadata and trace_bytes(model):
        return False
    if wishes.fix_inputs or (wishes.drop_optional_inputs and optional_inputs(model)):
        return False
    sorted_already = model.ir_version >= 4 and is_sorted(model)
    return sorted_already and not model.functions and (opset is None or opset.version > NEWEST_OLD)


def _take_weights_off_inputs(model: onnx.ModelProto) -> int:
    """Returns how many. Up to IR version 3 every initializer is listed among the inputs, and none can be fed."""
    before, fed = len(model.graph.input), runtime_inputs(model)
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in fed]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    return before - len(copies)
