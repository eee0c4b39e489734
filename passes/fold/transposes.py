"""Transposes that cancel each other across what lies between them.

    Conv -> Transpose -> Add(c) -> Relu -> Transpose back -> Conv     becomes  Conv -> Add(c') -> Relu -> Conv
    x -> Pad -> Transpose                                             becomes  x -> Transpose -> Pad

TensorFlow computes with channels last, and its exporters put a Transpose on both sides of every convolution.
Every tensor that is a transposed one, or computed element by element from such, is moved to the layout of
the first; a Transpose is written only where others read it. Nothing is changed unless fewer are left.
"""

from collections.abc import Collection, Sequence

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import disconnect, is_output, replace_input

Order = tuple[int, ...]

UNARY = frozenset(
    (
        "Abs",
        "Cast",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Neg",
    )
) | frozenset(("Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh"))
"""What computes each element of its first input alone; other inputs are numbers."""

JOINING = frozenset(("Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"))
"""What computes each element of elements at the same place."""

MEANS = frozenset(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"))


def cancel(graph: Graph, captured: Collection[str], spared: Collection[str] = ()) -> list[str]:
    """Takes out Transposes that cancel. Returns the names of those that are gone. `spared`: names of nodes that
    stay as they are.
    """
    if not any(node.op == "Transpose" for node in graph.nodes):
        return []
    graph.toposort()
    plan = _Plan(graph, captured, spared)
    return plan.apply() if plan.left < plan.found else []


def hoist(graph: Graph, pad: Node, captured: Collection[str]) -> bool:
    """Moves a Pad behind the Transpose that alone reads it. Says whether it did."""
    if pad.op != "Pad" or pad.domain or len(pad.inputs) < 2 or not isinstance(pad.inputs[1], Constant):
        return False
    padded = pad.outputs[0]
    if len(padded.outputs) != 1 or is_output(graph, padded) or padded.name in captured:
        return False
    transpose = padded.outputs[0]
    order = _order(transpose)
    amounts = np.asarray(pad.inputs[1].values).reshape(-1)
    if order is None or len(pad.inputs) > 3 or amounts.size != 2 * len(order):
        return False
    taken = taken_names(graph)
    moved = amounts.reshape(2, -1)[:, list(order)].reshape(-1)
    between = Variable(unused_name(f"{padded.name}_transposed", taken), padded.dtype)
    result = transpose.outputs[0]
    transpose.inputs, transpose.outputs = [pad.inputs[0]], [between]
    pad.inputs[0], pad.outputs = between, [result]
    pad.inputs[1] = Constant(unused_name(f"{pad.inputs[1].name}_transposed", taken), moved)
    return True


def _order(node: Node) -> Order | None:
    """The order of axes of a Transpose that names it; None for any other node."""
    if node.op != "Transpose" or node.domain or not node.outputs or node.attrs.get("perm") is None:
        return None
    return tuple(int(axis) for axis in node.attrs["perm"])


class _Plan:
    """Which tensors are transposed ones, in which order of axes, and how many Transposes that leaves."""

    def __init__(self, graph: Graph, captured: Collection[str], spared: Collection[str]) -> None:
        self.graph, self.captured, self.spared = graph, captured, spared
        self.alive = [tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)]
        """Tensors are known by identity, which another one must not get while the plan is carried out."""
        self.orders: dict[int, Order] = {}
        """Of a tensor's axes, by identity: place of each among those of what it is moved to."""
        self.back: dict[int, Node] = {}
        """Transposes that give the first layout back, by identity."""
        self.moved: list[Node] = []
        """All nodes that the plan changes, in graph order."""
        for node in graph.nodes:
            self._add(node)
        mine = {id(node) for node in self.moved}
        self.read = {
            id(tensor)
            for node in self.moved
            for tensor in node.outputs
            if id(tensor) in self.orders
            and (self._is_seen(tensor) or any(id(reader) not in mine for reader in tensor.outputs))
        }
        """Tensors that others read as they are."""
        self.found = sum(node.op == "Transpose" for node in self.moved)
        self.left = len(self.read)

    def _is_seen(self, tensor: Tensor) -> bool:
        return is_output(self.graph, tensor) or tensor.name in self.captured

    def _add(self, node: Node) -> None:
        if node.name in self.spared:
            return
        order = _order(node)
        if order is not None:
            before = self.orders.get(id(node.inputs[0]))
            if (before is not None and len(before) != len(order)) or order == tuple(range(len(order))):
                return
            whole = order if before is None else tuple(before[axis] for axis in order)
            if whole != tuple(range(len(whole))):
                self.orders[id(node.outputs[0])] = whole
            elif node.outputs[0].name in self.captured:
                return
            else:
                self.back[id(node)] = node
            self.moved.append(node)
        elif (found := self._common(node)) is not None:
            self.moved.append(node)
            if not (node.op in MEANS and not node.attrs.get("keepdims", 1)):
                self.orders[id(node.outputs[0])] = found

    def _common(self, node: Node) -> Order | None:
        """The order that all data that the node computes with has, if it can be computed in another one."""
        if node.domain or len(node.outputs) != 1 or not node.inputs:
            return None
        if node.op in UNARY:
            numbers = all(t.is_empty() or isinstance(t, Constant) for t in node.inputs[1:])
            return self.orders.get(id(node.inputs[0])) if numbers else None
        if node.op in JOINING or node.op == "Concat":
            data = [tensor for tensor in node.inputs if not isinstance(tensor, Constant)]
            orders = {self.orders.get(id(tensor)) for tensor in data}
            found = orders.pop() if len(orders) == 1 else None
            whole = node.op != "Concat" or len(data) == len(node.inputs)
            fits = found is not None and all(
                len(t.shape) <= len(found) for t in node.inputs if isinstance(t, Constant)
            )
            return found if whole and fits else None
        return self._of_mean(node) if node.op in MEANS else None

    def _of_mean(self, node: Node) -> Order | None:
        """Axes that go must leave the others in the order that they had."""
        order, axes = self.orders.get(id(node.inputs[0])), _axes(node)
        if order is None or axes is None:
            return None
        rest = [order[axis] for axis in range(len(order)) if axis not in {one % len(order) for one in axes}]
        return order if node.attrs.get("keepdims", 1) or rest == sorted(rest) else None

    def apply(self) -> list[str]:
        gone, names = [], taken_names(self.graph)
        base: dict[int, Tensor] = {}
        for node in self.moved:
            given, result = list(node.inputs), node.outputs[0]
            order = self.orders.get(id(result))
            if node.op == "Transpose":
                source = base.get(id(given[0]), given[0])
                if id(node) in self.back:
                    # one that changes nothing; fold takes it out, at an output of the model too
                    node.inputs, node.attrs["perm"] = [source], list(range(len(node.attrs["perm"])))
                    for reader in list(result.outputs):
                        replace_input(reader, result, source)
                    gone.append(node.name)
                    continue
                base[id(result)] = source
                if id(result) in self.read:
                    node.inputs, node.attrs["perm"] = [source], list(order or ())
                else:
                    disconnect(node)
                    gone.append(node.name)
                continue
            self._compute_moved(node, base, names)
            if order is not None:
                fresh = Variable(_fresh(f"{result.name}_moved", names), result.dtype)
                node.outputs, base[id(result)] = [fresh], fresh
                if id(result) in self.read:
                    name = _fresh(f"{result.name}_Transpose", names)
                    made = Node("Transpose", name, {"perm": list(order)}, [fresh], [result])
                    self.graph.nodes.append(made)
        return gone

    def _compute_moved(self, node: Node, base: dict[int, Tensor], names: set[str]) -> None:
        """Lets the node compute in the layout of what its inputs are moved to."""
        order = next(self.orders[id(tensor)] for tensor in node.inputs if id(tensor) in self.orders)
        if node.op == "Concat":
            node.attrs["axis"] = order[node.attrs["axis"] % len(order)]
        if node.op in MEANS:
            axes = [order[axis % len(order)] for axis in _axes(node) or ()]
            if "axes" in node.attrs:
                node.attrs["axes"] = axes
            else:
                name = _fresh(f"{node.inputs[1].name}_moved", names)
                node.inputs[1] = Constant(name, np.array(axes, np.int64))
        for index, tensor in enumerate(list(node.inputs)):
            if id(tensor) in base and id(tensor) in self.orders:
                node.inputs[index] = base[id(tensor)]
            elif node.op in JOINING and isinstance(tensor, Constant) and tensor.values.size > 1:
                name = _fresh(f"{tensor.name}_moved", names)
                node.inputs[index] = Constant(name, _as_first(tensor.values, order))


def _axes(node: Node) -> Sequence[int] | None:
    if node.attrs.get("axes") is not None:
        return [int(axis) for axis in node.attrs["axes"]]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    return [int(axis) for axis in given.values.reshape(-1)] if isinstance(given, Constant) else None


def _as_first(values: np.ndarray, order: Order) -> np.ndarray:
    """A constant that is aligned with a tensor of this order, aligned with what the tensor is moved to."""
    whole = values.reshape((1,) * (len(order) - values.ndim) + values.shape)
    return np.ascontiguousarray(whole.transpose(np.argsort(order)))


def _fresh(wanted: str, names: set[str]) -> str:
    name = unused_name(wanted, names)
    names.add(name)
    return name
