"""Blocks of a network: parts that read one tensor and give one, so that each can be held to another network's by itself.

    x -> Conv -> Relu -> Conv -> Add(x) -> Relu -> y            a residual block
    x -> Conv -> Relu -> depthwise Conv -> Relu -> Conv -> y    an inverted residual, without the addition

They are found from the graph: wherever all that follows depends on one tensor alone, a block may end. A layer that has
others beside it as far as the next such place is in their block; a depthwise convolution is in one with the layer before
and behind it. Any other layer is a block.
Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3.2.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from onnx_lathe.passes.extraction.submodel import Flow, flow

MOST_LAYERS = 8
"""Of a block; where more lie between two places at which a block may end, each is one by itself."""
ENDS = ("ArgMax", "LogSoftmax", "Sigmoid", "Softmax", "TopK")
"""What follows the last layer and is no part of its block: of probabilities few are near no 0 and no 1."""


@dataclass
class Block:
    """`layers`: what its nodes with a chosen weight write, in order."""

    source: str
    answer: str
    layers: list[str] = field(default_factory=list)
    kinds: str = ""
    """Of each layer: d, depthwise, or p; r if it lies beside others."""

    def takes(self, kinds: str) -> bool:
        """Whether layers of these kinds behind it are of the same block."""
        return (kinds == "d" and self.kinds == "p") or (kinds == "p" and self.kinds in ("d", "pd"))


def blocks_of(model: onnx.ModelProto, layers: Mapping[str, bool]) -> list[Block]:
    """The blocks, in order. `layers`: the first output of each node that is changed, and whether it is depthwise."""
    whole, found = flow(model), list[Block]()
    sizes, start, begin = _sizes(whole), None, 0
    for place, name in _cuts(whole, {value.name for value in model.graph.output}, sizes):
        reads = {str(node.output[0]): node.input[0] for node in whole.nodes[begin : place + 1]}
        inside = [one for one in reads if one in layers]
        kinds = "".join("d" if layers[one] else "p" for one in inside)
        if len(inside) > 1:
            kinds = "r" * len(inside)
        if len(inside) > MOST_LAYERS or (inside and start is None):
            found += [Block(reads[one], one, [one], "r") for one in inside]
        elif inside and found and found[-1].answer == start and found[-1].takes(kinds):
            found[-1].layers += inside
            found[-1].kinds += kinds
            found[-1].answer = name
        elif inside:
            found.append(Block(str(start), name, inside, kinds))
        elif (
            found
            and found[-1].answer == start
            and _goes_on(whole, range(begin, place + 1), str(start), sizes)
        ):
            found[-1].answer = name
        start, begin = name, place + 1
    return found


def _sizes(whole: Flow) -> set[str]:
    """Tensors that depend on an input by its shape alone."""
    found = set[str]()
    for place, node in enumerate(whole.nodes):
        read = [name for name in whole.reads[place] if name in whole.varying]
        if node.op_type in ("Shape", "Size") or (read and found.issuperset(read)):
            found.update(node.output)
    return found


def _goes_on(whole: Flow, places: Iterable[int], start: str, sizes: Collection[str]) -> bool:
    """Whether these nodes belong to the block whose answer `start` was: they read nothing else."""
    nodes = [one for one in places if whole.nodes[one].output[0] not in sizes]
    made = {start}.union(*(whole.nodes[one].output for one in nodes))
    return all(
        whole.nodes[one].op_type not in ENDS
        and all(name in made or name not in whole.varying for name in whole.reads[one])
        for one in nodes
    )


def _cuts(whole: Flow, outputs: Collection[str], sizes: Collection[str]) -> Iterator[tuple[int, str]]:
    """(place, tensor): behind the node at this place, the values of all that follows depend on the tensor alone."""
    last = {name: place for place, reads in enumerate(whole.reads) for name in reads}
    alive = {name for name in whole.inputs if name in last}
    if len(alive) == 1:
        yield -1, next(iter(alive))
    for place, node in enumerate(whole.nodes):
        alive |= {
            name
            for name in node.output
            if name in whole.varying and name not in sizes and (name in last or name in outputs)
        }
        alive -= {name for name in whole.reads[place] if last.get(name) == place and name not in outputs}
        if len(alive) == 1 and node.output and node.output[0] in alive:
            yield place, str(node.output[0])
