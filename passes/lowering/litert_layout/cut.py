"""The cheapest assignment of labels 0 and 1 where disagreement costs: a minimum cut, by Dinic's algorithm.

A group is one producer and its readers. It costs `weight`, once, if any reader has another label than the
producer: one Transpose serves all of them. For the minimum to be a minimum cut, a group gets two vertices of its
own, one for each direction (Ishikawa and Geiger, "Segmentation by grouping junctions", CVPR 1998, for the cut;
Dinic, "Algorithm for solution of a problem of maximum flow in networks with power estimation", 1970).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass
class Labelling:
    """Variables are known by any hashable key; the keys 0 and 1 are the labels themselves."""

    costs: list[tuple[Hashable, Sequence[Hashable], int | None]] = field(default_factory=list)

    def group(self, producer: Hashable, readers: Sequence[Hashable], weight: int | None) -> None:
        """Costs `weight` if a reader's label is not the producer's; None: it may not be."""
        self.costs.append((producer, readers, weight))

    def prefer(self, variable: Hashable, label: int, weight: int) -> None:
        """Costs `weight` if the variable has the other label."""
        self.costs.append((label, [variable], weight))

    def cost(self, labels: dict[Hashable, int]) -> float:
        """What an assignment of all variables costs."""
        known = {0: 0, 1: 1, **labels}
        total = 0.0
        for producer, readers, weight in self.costs:
            if any(known[reader] != known[producer] for reader in readers):
                total += float("inf") if weight is None else weight
        return total

    def cheapest(self) -> dict[Hashable, int]:
        """The labels of all variables at the lowest cost; 1 wherever both cost the same."""
        infinite = 1 + sum(weight for _, _, weight in self.costs if weight is not None)
        network = _Network()
        for number, (producer, readers, weight) in enumerate(self.costs):
            capacity = infinite if weight is None else weight
            if not readers or not capacity:
                continue
            up, down = ("up", number), ("down", number)
            network.add(producer, up, capacity)
            network.add(down, producer, capacity)
            for reader in readers:
                network.add(up, reader, infinite)
                network.add(reader, down, infinite)
        sources = network.cut(0, 1)
        variables = {key for producer, readers, _ in self.costs for key in (producer, *readers)}
        return {key: 0 if key in sources else 1 for key in variables if key not in (0, 1)}


class _Network:
    """Directed edges with capacities, whole numbers."""

    def __init__(self) -> None:
        self.vertices: dict[Hashable, int] = {}
        self.edges: list[list[int]] = []
        self.heads: list[int] = []
        self.left: list[int] = []

    def add(self, tail: Hashable, head: Hashable, capacity: int) -> None:
        for start, end, amount in ((tail, head, capacity), (head, tail, 0)):
            self.edges[self._vertex(start)].append(len(self.heads))
            self.heads.append(self._vertex(end))
            self.left.append(amount)

    def _vertex(self, key: Hashable) -> int:
        if key not in self.vertices:
            self.vertices[key] = len(self.edges)
            self.edges.append([])
        return self.vertices[key]

    def cut(self, source: Hashable, sink: Hashable) -> set[Hashable]:
        """The fewest vertices on the source's side of a minimum cut."""
        start, end = self._vertex(source), self._vertex(sink)
        while (levels := self._levels(start))[end] >= 0:
            following = [0] * len(self.edges)
            while self._augment(start, end, levels, following):
                pass
        return {key for key, vertex in self.vertices.items() if levels[vertex] >= 0}

    def _levels(self, start: int) -> list[int]:
        """Distance from `start` along edges with capacity left; -1 if there is no way."""
        levels = [-1] * len(self.edges)
        levels[start] = 0
        waiting = deque([start])
        while waiting:
            vertex = waiting.popleft()
            for edge in self.edges[vertex]:
                head = self.heads[edge]
                if self.left[edge] and levels[head] < 0:
                    levels[head] = levels[vertex] + 1
                    waiting.append(head)
        return levels

    def _augment(self, start: int, end: int, levels: list[int], following: list[int]) -> bool:
        """Sends what one shortest way takes. `following`: the first edge of each vertex still worth trying."""
        way: list[int] = []
        vertex = start
        while vertex != end:
            while following[vertex] < len(self.edges[vertex]):
                edge = self.edges[vertex][following[vertex]]
                if self.left[edge] and levels[self.heads[edge]] == levels[vertex] + 1:
                    break
                following[vertex] += 1
            else:
                if not way:
                    return False
                vertex = self.heads[way.pop() ^ 1]
                following[vertex] += 1
                continue
            way.append(edge)
            vertex = self.heads[edge]
        amount = min(self.left[edge] for edge in way)
        for edge in way:
            self.left[edge] -= amount
            self.left[edge ^ 1] += amount
        return True
