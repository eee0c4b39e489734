"""Rewrites the graph to the chosen storages."""

from collections.abc import Mapping

from onnx_lathe.passes.graph import Constant, Node, Tensor, Variable
from onnx_lathe.passes.lowering.litert_layout.choice import Choice
from onnx_lathe.passes.lowering.litert_layout.rules import Site, rule_of
from onnx_lathe.passes.lowering.litert_layout.storage import (
    Size,
    Storage,
    channels_first,
    channels_last,
    moves_nothing,
    plain,
)
from onnx_lathe.passes.lowering.litert_layout.work import Work


class Writer:
    def __init__(self, work: Work, choice: Choice) -> None:
        self.work, self.choice = work, choice
        self.stored: dict[tuple[int, Storage], Tensor] = {}
        self.inside = {id(node) for one in choice.sandwiches for node in (one.head, one.tail)}
        self.own: set[int] = set()
        """Ids of the Transposes that belong to sandwiches."""
        self.originals: dict[int, tuple[Tensor, tuple[Size, ...]]] = {}

    def write(self) -> None:
        graph = self.work.graph
        nodes = list(graph.nodes)
        ends = [(node, list(node.inputs), list(node.outputs)) for node in nodes]
        for tensor in {
            id(one): one for one in [*graph.inputs, *(t for n in nodes for t in n.outputs)]
        }.values():
            if id(tensor) in self.choice.produced:
                self._declare(tensor)
            elif (shape := self.work.shape(tensor)) is not None and not self._is_end(tensor):
                self.work.set_sizes(tensor, shape)
        self.work.stored = self._find
        for node, inputs, outputs in ends:
            self._rewrite(node, inputs, outputs)
        for sandwich in self.choice.sandwiches:
            self._wrap(sandwich.head, sandwich.tail)
        for tensor in list(graph.outputs):
            self._settle(tensor)
        for key, (tensor, _) in list(self.originals.items()):
            if tensor.name in self.work.captured and key in self.choice.produced:
                self._settle(tensor)
        graph.toposort()

    def _declare(self, tensor: Tensor) -> None:
        """The tensor keeps its name in the storage in which it is produced, unless others know it by that name in
        another.
        """
        produced, rank = self.choice.produced[id(tensor)], self.choice.produced[id(tensor)].rank
        shape = self.work.shape(tensor) or (None,) * rank
        self.originals[id(tensor)] = (tensor, shape)
        own = self.choice.asked.get(id(tensor), produced)
        if tensor.name in self.work.captured:
            own = plain(rank)
        if own != produced:
            self.stored[id(tensor), produced] = self._variable(tensor, produced)
        self.stored[id(tensor), own] = tensor
        if not own.is_plain or not self._is_end(tensor):
            self.work.set_sizes(tensor, own.sizes(shape))

    def _is_end(self, tensor: Tensor) -> bool:
        """Whether the graph declares the tensor's shape."""
        return any(tensor is one for one in [*self.work.graph.inputs, *self.work.graph.outputs])

    def _variable(self, tensor: Tensor, storage: Storage) -> Variable:
        suffix = "nhwc" if storage == channels_last(storage.rank) else "nchw"
        shape = self.originals[id(tensor)][1]
        return self.work.variable(f"{tensor.name}_{suffix}", tensor, storage.sizes(shape))

    def _find(self, tensor: Tensor, storage: Storage) -> Tensor:
        return self._get(tensor, storage) if id(tensor) in self.choice.produced else tensor

    def _get(self, tensor: Tensor, storage: Storage) -> Tensor:
        """The tensor in this storage, transposed where it is not there yet."""
        key, produced = (id(tensor), storage), self.choice.produced[id(tensor)]
        found = self.stored.get(key)
        if found is not None and (found.inputs or storage == produced):
            return found
        made = found if found is not None else self._variable(tensor, storage)
        self.stored[key] = made
        self._move(tensor, self.stored[id(tensor), produced], made, produced, storage)
        return made

    def _move(self, tensor: Tensor, source: Tensor, result: Tensor, stored: Storage, wanted: Storage) -> None:
        """A Transpose; a Reshape where only axes of size 1 move."""
        shape = self.originals[id(tensor)][1]
        sizes = wanted.sizes(shape)
        if moves_nothing(shape, stored, wanted) and sum(not isinstance(one, int) for one in sizes) <= 1:
            target = [one if isinstance(one, int) else -1 for one in sizes]
            inputs = [source, self.work.integers(f"{result.name}_shape", target)]
            self.work.node("Reshape", f"{result.name}_Reshape", inputs, [result])
        else:
            steps = list(stored.steps_to(wanted))
            node = self.work.node("Transpose", f"{result.name}_Transpose", [source], [result], perm=steps)
            self.work.report.edit(node.name, f"moves {self.work.size_bytes(tensor):,} bytes of {tensor.name}")

    def _settle(self, tensor: Tensor) -> None:
        """Writes the tensor by its own name, if nothing has."""
        if id(tensor) not in self.choice.produced:
            return
        for (key, storage), found in list(self.stored.items()):
            if key == id(tensor) and found is tensor:
                self._get(tensor, storage)

    def _rewrite(self, node: Node, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        seen: Mapping[int, Storage] = self.choice.seen.get(id(node), {})
        if not seen:
            return
        if not all(storage.is_plain for storage in seen.values()) and not self._is_inside(node):
            before = node.op, dict(node.attrs)
            rule_of(node).rewrite(Site(self.work, node), seen)
            if (node.op, node.attrs) != before or any(
                a is not b for a, b in zip(node.inputs, inputs, strict=False)
            ):
                self.work.report.edit(node.name, "acts on channels last")
        for index, tensor in enumerate(node.inputs):
            if id(tensor) in seen and not isinstance(tensor, Constant):
                node.inputs[index] = self._get(tensor, seen[id(tensor)])
        for index, tensor in enumerate(node.outputs):
            if id(tensor) in seen:
                node.outputs[index] = self.stored[id(tensor), seen[id(tensor)]]

    def _is_inside(self, node: Node) -> bool:
        return id(node) in self.inside

    def _wrap(self, head: Node, tail: Node) -> None:
        """Puts the two Transposes around an image operator, which has read and written channels last so far."""
        source, result = head.inputs[0], tail.outputs[0]
        sizes = [self.work.sizes.get(id(one), tuple(one.shape)) for one in (source, result)]
        back, forth = channels_first(len(sizes[0])).order, channels_last(len(sizes[0])).order
        before, behind = (
            self.work.variable(name, one, [known[axis] for axis in back])
            for name, one, known in (
                (f"{head.name}_input_nchw", source, sizes[0]),
                (f"{result.name}_nchw", result, sizes[1]),
            )
        )
        first = self.work.node(
            "Transpose", f"{head.name}_input_Transpose", [source], [before], perm=list(back)
        )
        last = self.work.node(
            "Transpose", f"{tail.name}_output_Transpose", [behind], [result], perm=list(forth)
        )
        head.inputs[0], tail.outputs[0] = before, behind
        self.own.update((id(first), id(last)))
        self.work.report.edit(head.name, "stands between two Transposes, for channels last")
