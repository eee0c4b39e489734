"""What an operator asks of the storages of its tensors, and how it is rewritten to act on them.

A rule is found by the operator's name. `frames` says, given the frame of one of the node's tensors, the frames of
all that it binds; None: the node cannot act on it and takes its tensors as they are in the original graph.
`rewrite` makes the node act on what is stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Node, Tensor
from onnx_lathe.passes.graph.constants import value
from onnx_lathe.passes.lowering.litert_layout.storage import Frame, Size, Storage
from onnx_lathe.passes.lowering.litert_layout.work import Work

Frames = dict[int, Frame]
"""By the id of a tensor."""


@dataclass
class Site:
    """A node of the original graph."""

    work: Work
    node: Node

    def shape(self, tensor: Tensor) -> tuple[Size, ...] | None:
        return self.work.shape(tensor)

    def rank(self, tensor: Tensor) -> int | None:
        return self.work.rank(tensor)

    @property
    def opset(self) -> int:
        return self.work.opset

    @property
    def results(self) -> list[Tensor]:
        """The outputs that are not left out."""
        return [one for one in self.node.outputs if not one.is_empty()]

    def given(self, index: int) -> Tensor | None:
        """An input, if it is not left out."""
        if len(self.node.inputs) <= index or self.node.inputs[index].is_empty():
            return None
        return self.node.inputs[index]

    def values(self, index: int) -> list[int] | None:
        """An input of integers, if it is constant."""
        tensor = self.given(index)
        known = None if tensor is None else value(tensor)
        return None if known is None else [int(one) for one in np.asarray(known).reshape(-1)]


class Rule:
    """Takes its tensors as they are in the original graph, whatever they are: what no other rule is for."""

    is_image = False
    """Whether the operator wants its first input, and what it writes, with channels last, and is written between two
    Transposes.
    """

    def frames(self, site: Site, tensor: Tensor, frame: Frame, known: Mapping[int, Frame]) -> Frames | None:
        """`known`: frames that tensors have already."""
        return None

    def takes_any(self, site: Site, tensor: Tensor, frame: Frame) -> bool:
        """Whether the node reads the tensor in whatever storage it has, which binds nothing else."""
        return False

    def moves(self, site: Site, storage: Storage) -> int | None:
        """How many tensors of the size of its input LiteRT has to transpose for the node to act on this storage; None:
        it has no operator for that at all.
        """
        return 0

    def seeds(self, site: Site) -> bool:
        """Whether the first input and the first output are images with their channels on axis 1, by what the node
        does.
        """
        return self.is_image

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        """`seen`: the storage, by the tensor's id, in which the node reads or writes each tensor with a frame; where
        they are all as in the original graph it is not called.
        """


RULES: dict[str, Rule] = {}
_NONE = Rule()


def rule(*operators: str) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: the rule of these operators."""

    def register(made: type[Rule]) -> type[Rule]:
        RULES.update(dict.fromkeys(operators, made()))
        return made

    return register


def rule_of(node: Node) -> Rule:
    return _NONE if node.domain else RULES.get(node.op, _NONE)


class Uniform(Rule):
    """Every tensor that holds the image has the same storage."""

    def flows(self, site: Site) -> list[Tensor] | None:
        """The tensors that hold the image, all of one rank; None if the node's form is not known here."""
        return [site.node.inputs[0], *site.results]

    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat

    def frames(self, site: Site, tensor: Tensor, frame: Frame, known: Mapping[int, Frame]) -> Frames | None:
        flows = self.flows(site)
        if flows is None or not any(tensor is one for one in flows):
            return None
        if any(site.rank(one) != frame[0].rank for one in flows):
            return None
        if not all(storage.is_plain or self.accepts(site, storage) for storage in frame):
            return None
        return {id(one): frame for one in flows}

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        flows = self.flows(site) or []
        self.act_on(site, seen[id(flows[0])])

    def act_on(self, site: Site, storage: Storage) -> None:
        """Axes and operands in the order of the storage."""
