"""HardSigmoid in operators that every runtime of phones computes on integers.

    HardSigmoid(x)      becomes      Clip(x * alpha + beta, 0, 1)

The product holds the levels of x in another scale, and the Clip is the range of what is stored: one rounding.
"""

from collections.abc import Collection, Sequence

import numpy as np

from onnx_lathe.passes.graph import Node, Variable
from onnx_lathe.passes.graph.rewire import disconnect
from onnx_lathe.passes.lowering.ort_integers.work import Work
from onnx_lathe.passes.lowering.phone_form.choice import Kernel
from onnx_lathe.passes.lowering.phone_form.known import Known

GATE = "HardSigmoid"
ALPHA, BETA = 0.2, 0.5
"""ONNX's own."""


def split_gates(
    work: Work, known: Known, kernels: Sequence[Kernel], operators: Collection[str]
) -> list[Kernel]:
    """The kernels, with two in place of each HardSigmoid where `operators` have none."""
    found: list[Kernel] = []
    for kernel in kernels:
        if kernel.node.op == GATE and GATE not in operators:
            found += _split(work, known, kernel)
        else:
            found.append(kernel)
    work.graph.toposort()
    return found


def _split(work: Work, known: Known, kernel: Kernel) -> list[Kernel]:
    node, source, result = kernel.node, kernel.node.inputs[0], kernel.node.outputs[0]
    alpha, beta = node.attrs.get("alpha", ALPHA), node.attrs.get("beta", BETA)
    slope, offset = (
        work.constant(f"{node.name}_alpha", np.array(alpha, np.float32)),
        work.constant(f"{node.name}_beta", np.array(beta, np.float32)),
    )
    scaled = Variable(work.name(f"{node.name}_scaled"), np.float32, source.shape)
    low, high = known.ranges[source.name]
    known.ranges[scaled.name] = low * alpha, high * alpha
    disconnect(node)
    work.graph.nodes.remove(node)
    multiply = Node("Mul", work.name(f"{node.name}_Mul"), {}, [source, slope], [scaled])
    sum_ = Variable(work.name(f"{node.name}_shifted"), np.float32, source.shape)
    limits = [work.constant(f"{node.name}_{end}", np.array(end, np.float32)) for end in (0, 1)]
    add = Node("Add", work.name(f"{node.name}_Add"), {}, [scaled, offset], [sum_])
    clip = Node("Clip", work.name(f"{node.name}_Clip"), {}, [sum_, *limits], [result])
    work.graph.nodes += [multiply, add, clip]
    work.report.edit(node.name, "written as a product and a sum, cut off at 0 and 1 by the range")
    floors = [clip, *kernel.floors]
    return [
        Kernel(multiply, False, [scaled], bits=kernel.bits),
        Kernel(add, False, kernel.results, floors=floors, bits=kernel.bits),
    ]
