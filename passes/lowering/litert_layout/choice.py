"""Which storage each tensor has: frames are carried from the image operators to whatever can act on them, and then
every node gets the label at which the fewest bytes are transposed.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from onnx_lathe.passes.graph import Node, Tensor, Variable
from onnx_lathe.passes.lowering.litert_layout.cut import Labelling
from onnx_lathe.passes.lowering.litert_layout.images import fused_activation
from onnx_lathe.passes.lowering.litert_layout.rules import Site, rule_of
from onnx_lathe.passes.lowering.litert_layout.storage import (
    CHANNELS_LAST,
    Frame,
    Storage,
    channels_last,
    image_frame,
    moves_nothing,
    plain,
)
from onnx_lathe.passes.lowering.litert_layout.work import Work

OPERATOR_BYTES = 512
"""What one more operator counts as, beside the bytes that it moves."""
RESHAPE_BYTES = 16
"""The same of an operator that moves none."""
IMAGE_RANKS = (3, 4)
"""Of inputs and outputs that may be asked for with their channels last."""


@dataclass(frozen=True)
class Sandwich:
    """An image operator, written between two Transposes, with the activation that is part of it."""

    head: Node
    tail: Node


@dataclass
class Choice:
    """`produced`: the storage of every tensor with a frame, by its id. `seen`: for each node the storage in which it
    reads and writes those of its tensors, by their ids.
    """

    produced: dict[int, Storage] = field(default_factory=dict)
    seen: dict[int, dict[int, Storage]] = field(default_factory=dict)
    sandwiches: list[Sandwich] = field(default_factory=list)
    asked: dict[int, Storage] = field(default_factory=dict)
    """What callers are to get: the storage of inputs and outputs, by their ids."""


class Chooser:
    def __init__(self, work: Work, keep_ends: bool) -> None:
        self.work, self.keep_ends = work, keep_ends
        self.sites = [Site(work, node) for node in work.graph.nodes]
        self.frames: dict[int, Frame] = {}
        self.tensors: dict[int, Tensor] = {}
        self.sandwiches: dict[int, Sandwich] = {}
        self.inside: set[int] = set()
        self.images: set[int] = set()
        self.known: set[int] = set()
        """Nodes of the graph itself, not of bodies, that are in no sandwich."""
        self.bound: dict[int, dict[int, Frame]] = {}
        """For each node that can act on either storage of its tensors, with one label for all, their frames."""

    def choose(self) -> Choice:
        self._sandwich()
        self.known = {id(site.node) for site in self.sites} - self.inside
        self._carry_frames()
        for site in self.sites:
            if id(site.node) in self.known and (frames := self._agreed(site)):
                self.bound[id(site.node)] = frames
        labels = self._labels()
        return self._choice(labels)

    # frames

    def _sandwich(self) -> None:
        for site in self.sites:
            rule = rule_of(site.node)
            if rule.is_image and rule.seeds(site):
                sandwich = Sandwich(site.node, fused_activation(site) or site.node)
                self.sandwiches[id(site.node)] = sandwich
                self.inside.update((id(sandwich.head), id(sandwich.tail)))
                self.images.add(id(sandwich.tail.outputs[0]))

    def _seeds(self) -> Iterator[Tensor]:
        """Tensors that are images, by the operators that read and write them."""
        for site in self.sites:
            if id(site.node) in self.sandwiches:
                sandwich = self.sandwiches[id(site.node)]
                yield from (sandwich.head.inputs[0], sandwich.tail.outputs[0])
            elif id(site.node) not in self.inside and rule_of(site.node).seeds(site):
                yield from (site.node.inputs[0], site.node.outputs[0])

    def _carry_frames(self) -> None:
        """From image operators through operators that act on any storage; through a Transpose only when nothing else
        says how its other tensor is stored.
        """
        waiting: deque[Tensor] = deque()
        later: deque[Tensor] = deque()

        def assign(tensor: Tensor, frame: Frame) -> None:
            if id(tensor) in self.frames or not isinstance(tensor, Variable) or frame[0] == frame[1]:
                return
            self.frames[id(tensor)], self.tensors[id(tensor)] = frame, tensor
            waiting.append(tensor)
            later.append(tensor)

        for tensor in self._seeds():
            assign(tensor, image_frame(self.work.rank(tensor) or 0))
        while waiting or later:
            through_transposes = not waiting
            tensor = later.popleft() if through_transposes else waiting.popleft()
            for node in [*tensor.inputs, *tensor.outputs]:
                if id(node) not in self.known or (node.op == "Transpose") != through_transposes:
                    continue
                found = self._frames(Site(self.work, node), tensor)
                for other in [*node.inputs, *node.outputs]:
                    if found is not None and id(other) in found:
                        assign(other, found[id(other)])

    def _frames(self, site: Site, tensor: Tensor) -> dict[int, Frame] | None:
        return rule_of(site.node).frames(site, tensor, self.frames[id(tensor)], self.frames)

    def _agreed(self, site: Site) -> dict[int, Frame] | None:
        """The frames that the node binds, if they are those that its tensors have."""
        tensors = [*site.node.inputs, *site.node.outputs]
        found = None
        for tensor in tensors:
            if id(tensor) in self.frames and (found := self._frames(site, tensor)) is not None:
                break
        if found is None:
            return None
        for tensor in tensors:
            bound, frame = found.get(id(tensor)), self.frames.get(id(tensor))
            is_result = any(tensor is one for one in site.node.outputs)
            if bound is None and is_result and frame is not None:
                return None
            if bound is not None and frame != (bound if bound[0] != bound[1] else None):
                return None
        return {key: frame for key, frame in found.items() if key in self.frames}

    # labels

    def _labels(self) -> Mapping[Hashable, int]:
        labelling = Labelling()
        for key, tensor in self.tensors.items():
            frame = self.frames[key]
            producer = self._producer(tensor, frame)
            readers = self._readers(tensor, frame)
            if producer is not None:
                labelling.group(producer, readers, self._weight(tensor, frame))
        for site in self.sites:
            if id(site.node) in self.bound:
                labelling.group(id(site.node), (), 0)
                self._prefer(labelling, site)
        return {0: 0, 1: 1, **labelling.cheapest()}

    def _weight(self, tensor: Tensor, frame: Frame) -> int | None:
        if any(storage.flat for storage in frame):
            return None
        if moves_nothing(self.work.shape(tensor) or (), *frame):
            return RESHAPE_BYTES
        return self.work.size_bytes(tensor) + OPERATOR_BYTES

    def _prefer(self, labelling: Labelling, site: Site) -> None:
        source = site.node.inputs[0]
        frame = self.frames.get(id(source))
        if frame is None:
            return
        for label, storage in enumerate(frame):
            moves = rule_of(site.node).moves(site, storage)
            if moves is None:
                labelling.group(1 - label, [id(site.node)], None)
            elif moves:
                labelling.prefer(id(site.node), 1 - label, moves * self.work.size_bytes(source))

    def _producer(self, tensor: Tensor, frame: Frame) -> Hashable | None:
        """The variable, or the label, by which the tensor is produced; None if it fits neither storage."""
        if not tensor.inputs:
            return _label(frame, self._end(tensor, frame))
        node = tensor.inputs[0]
        if id(tensor) in self.images:
            return _label(frame, channels_last(frame[0].rank))
        if id(node) in self.bound:
            return id(node)
        if node.op == "Transpose" and not node.domain:
            return id(node)
        return _label(frame, plain(frame[0].rank))

    def _readers(self, tensor: Tensor, frame: Frame) -> list[Hashable]:
        found: list[Hashable | None] = []
        for node in tensor.outputs:
            if self._is_bound(node, tensor):
                found.append(id(node))
            elif (wanted := self._wanted(node, tensor, frame)) is not None:
                found.append(_label(frame, wanted))
        if any(tensor is output for output in self.work.graph.outputs):
            found.append(_label(frame, self._end(tensor, frame)))
        if tensor.name in self.work.captured:
            found.append(_label(frame, plain(frame[0].rank)))
        return [one for one in found if one is not None]

    def _is_bound(self, node: Node, tensor: Tensor) -> bool:
        """Whether the node's label says in which storage it reads the tensor."""
        return id(tensor) in self.bound.get(id(node), {})

    def _wanted(self, node: Node, tensor: Tensor, frame: Frame) -> Storage | None:
        """The storage in which a node that is not bound reads the tensor; None for any."""
        if id(node) in self.sandwiches and tensor is node.inputs[0]:
            return channels_last(frame[0].rank)
        is_free = id(node) not in self.bound and rule_of(node).takes_any(Site(self.work, node), tensor, frame)
        return None if is_free else plain(frame[0].rank)

    def _end(self, tensor: Tensor, frame: Frame) -> Storage:
        """The storage of an input or output of the graph."""
        rank = frame[0].rank
        last = channels_last(rank)
        is_kept = self.keep_ends or tensor.name in self.work.captured
        return plain(rank) if is_kept or rank not in IMAGE_RANKS or frame[CHANNELS_LAST] != last else last

    # result

    def _choice(self, labels: Mapping[Hashable, int]) -> Choice:
        choice = Choice(sandwiches=list(self.sandwiches.values()))
        for key, tensor in self.tensors.items():
            frame = self.frames[key]
            producer = self._producer(tensor, frame)
            if producer is None:
                choice.produced[key] = plain(frame[0].rank)
            else:
                choice.produced[key] = frame[labels[producer]]
            if not tensor.inputs or any(tensor is output for output in self.work.graph.outputs):
                choice.asked[key] = self._end(tensor, frame)
        for site in self.sites:
            choice.seen[id(site.node)] = self._seen(site.node, labels, choice.produced)
        return choice

    def _seen(
        self, node: Node, labels: Mapping[Hashable, int], produced: Mapping[int, Storage]
    ) -> dict[int, Storage]:
        seen = {id(one): produced[id(one)] for one in node.outputs if id(one) in produced}
        for tensor in node.inputs:
            frame = self.frames.get(id(tensor))
            if frame is not None and self._is_bound(node, tensor):
                seen[id(tensor)] = frame[labels[id(node)]]
            elif frame is not None:
                seen[id(tensor)] = self._wanted(node, tensor, frame) or produced[id(tensor)]
        return seen


def _label(frame: Frame, storage: Storage) -> int | None:
    """Which of the two storages it is."""
    return frame.index(storage) if storage in frame else None
