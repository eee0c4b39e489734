"""Which way branches go, where the sizes of inputs decide that.

    If(Equal(Gather(Shape(x), 1), 1))      one of its bodies, whichever runs at these sizes

Exporters write such a branch where a layer drops a dimension of 1. ncnn has no branches; where the condition is the same
at all sizes that are looked at, the lowering puts that body in the place of the If.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.ncnn.facts import Shape, free_tensors, free_values
from onnx_lathe.runtime.targets.ncnn.further import further_values


def decided(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], others: Mapping[str, Shape]
) -> dict[str, bool]:
    """Condition -> what it is at inputs of these `sizes`, of `others`, and further away. Those of branches in other
    branches' bodies are known once these are in the main graph.
    """
    wanted = _conditions(model.graph)
    if not wanted:
        return {}
    looked = (sizes, others) if sizes != others else (sizes,)
    try:
        known = [free_values(model, each, wanted) for each in looked]
    except TargetError:  # the conversion asks for the same sizes, and says what to do
        return {}
    known += further_values(model, sizes, others, wanted) if sizes != others else []
    return {
        name: bool(known[0][name])
        for name in wanted
        if all(np.all(one[name] == known[0][name]) for one in known if name in one)
    }


def _conditions(graph: onnx.GraphProto) -> list[str]:
    """Those that no input's content decides."""
    found = {node.input[0] for node in graph.node if node.op_type == "If" and not node.domain}
    return sorted(found.intersection(free_tensors(graph))) if found else []
