"""Three convolutions in place of one.

    Conv(W k x k, c -> d, b)   becomes   Conv(1 x 1, c -> r) -> Conv(k x k, r -> s) -> Conv(1 x 1, s -> d, b')
    or                                   Conv(1 x 1, c -> r) -> Conv(k x k, depthwise) -> Conv(1 x 1, r -> d, b')

The one in the middle has strides, pads and dilations. Only the last has a bias: behind a bias, padding with zeros would
not be padding with zeros.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Variable
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.numerics.rank.cp import Cp
from onnx_lathe.passes.numerics.rank.low_rank import balanced
from onnx_lathe.passes.numerics.rank.tucker import Tucker


@dataclass(frozen=True)
class Weights:
    """As Conv has them: [r, c, 1, ...], [s, r, k, ...] or depthwise [r, 1, k, ...], [d, s, 1, ...]; float32."""

    first: np.ndarray
    core: np.ndarray
    last: np.ndarray
    group: int

    def product(self) -> np.ndarray:
        """The weight that the three have together, [d, c, k], float64."""
        first, last = (one.reshape(one.shape[:2]).astype(np.float64) for one in (self.first, self.last))
        core = self.core.reshape(*self.core.shape[:2], -1).astype(np.float64)
        if self.group > 1:
            return Cp(first, core[:, 0], last).weight()
        return Tucker(first, core, last).weight()


def weights_of(found: Tucker | Cp, kernel: tuple[int, ...]) -> Weights:
    """Factors of equal norm, as weights of convolutions: what trains and quantizes best."""
    ones = [1] * len(kernel)
    if isinstance(found, Cp):
        first, core, last = _even(found)
        weights = (first, core[:, None], last)
        group = len(first)
    else:
        outer, inner, places = found.core.shape
        left, first = balanced(found.core.transpose(0, 2, 1).reshape(-1, inner), found.first)
        core = left.reshape(outer, places, inner).transpose(0, 2, 1)
        last, right = balanced(found.last, core.reshape(outer, -1))
        weights, group = (first, right.reshape(core.shape), last), 1
    first, core, last = (np.ascontiguousarray(one, np.float32) for one in weights)
    return Weights(
        first.reshape(*first.shape, *ones),
        core.reshape(*core.shape[:2], *kernel),
        last.reshape(*last.shape, *ones),
        group,
    )


def _even(found: Cp) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Terms whose three parts have equal norms."""
    parts = (found.first, found.core, found.last.T)
    norms = [np.linalg.norm(one, axis=1) for one in parts]
    each = np.cbrt(np.prod(norms, axis=0))
    first, core, last = (
        one * np.divide(each, norm, out=np.ones_like(norm), where=norm > 0)[:, None]
        for one, norm in zip(parts, norms, strict=True)
    )
    return first, core, last.T


def write_three(graph: Graph, node: Node, weights: Weights, bias: np.ndarray | None) -> None:
    """Puts three convolutions in place of `node`; `bias` [d], or None for none."""
    taken = taken_names(graph)

    def unused(wanted: str) -> str:
        name = unused_name(wanted, taken)
        taken.add(name)
        return name

    weight, result, source = node.inputs[1].name, node.outputs[0], node.inputs[0]
    place = next(index for index, one in enumerate(graph.nodes) if one is node)
    attributes = {key: value for key, value in node.attrs.items() if key != "group"}
    attributes["kernel_shape"] = list(weights.core.shape[2:])
    ones = {"kernel_shape": [1] * (weights.core.ndim - 2)}
    node.inputs.clear()
    node.outputs.clear()
    made = []
    for part, values, attrs in (
        ("first", weights.first, ones),
        ("core", weights.core, attributes | ({"group": weights.group} if weights.group > 1 else {})),
        ("last", weights.last, ones),
    ):
        constant = Constant(unused(f"{weight}_{part}"), values)
        name = unused(f"{node.name}_{part}")
        output = result if part == "last" else Variable(unused(f"{name}_output"), np.float32)
        made.append(Node("Conv", name, dict(attrs), [source, constant], [output]))
        source = output
    if bias is not None:
        made[-1].inputs.append(Constant(unused(f"{weight}_bias"), np.ascontiguousarray(bias, np.float32)))
    graph.nodes[place : place + 1] = made
