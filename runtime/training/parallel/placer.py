"""Rewrites the plan of a module so that the workers of a group split its layers.

    Conv -> Relu -> MaxPool -> ... -> GlobalAveragePool -> Gemm        and the same steps for each worker's rows:
    [cut] Conv -> Relu -> [halo] MaxPool -> ... -> mean of own rows [sum] -> Gemm

Values stay plain tensors, local to each worker; which part of the whole one is (its layout) is known when the plan is
made, from the shapes of a sample. Each operator has a rule in `rules`, or its inputs are gathered and every worker runs
it whole. Source: Dryden et al., "Improving Strong-Scaling of CNN Training by Exploiting Finer-Grained Parallelism", IPDPS
2019, sections 3 to 5.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
from torch import Tensor

from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.parts import Part
from onnx_lathe.runtime.torch_bridge.plan import NOTHING, Plan, Step
from onnx_lathe.runtime.training.parallel.layout import Layout, Ranges, Split, even
from onnx_lathe.runtime.training.parallel.moves import Mover, Traffic, mover
from onnx_lathe.runtime.training.parallel.rules.table import (
    ALWAYS,
    LAYERS,
    Choose,
    Mesh,
    Placed,
    Placing,
    rules,
)


@dataclass(frozen=True)
class Decision:
    """What became of a step, for reports."""

    node: str
    op: str
    layout: Layout
    shared: bool
    """Whether each worker does a part of it."""
    gathered: bool
    """Whether something that was split had to be gathered for it."""


@dataclass
class Placer:
    """Places the steps of `module` on the workers of `mesh.model`; `place` does it.

    sample: inputs like those of training, of any number of samples; the sizes of all other axes have to be those of
    training. parts: whether a worker keeps its part only of a weight that it reads a part of; else all weights stay whole
    and are cut where they are read.
    """

    module: GraphModule
    sample: Mapping[str, Tensor]
    mesh: Mesh
    choose: Choose
    parts: bool = True
    traffic: Traffic = field(default_factory=Traffic)
    decisions: list[Decision] = field(default_factory=list)

    def place(self) -> "Placer":
        self._outline = self.module.outline(self.sample)
        self._layouts: dict[int, Layout] = {}
        self._moved: dict[tuple[Any, ...], int] = {}
        self._steps: list[Step] = []
        self.module.rewrite(self._rewritten)
        return self

    # ---- what rules ask

    @property
    def size(self) -> int:
        return self.mesh.model.size

    @property
    def rank(self) -> int:
        return self.mesh.model.rank

    def layout(self, slot: int) -> Layout:
        return self._layouts.get(slot)

    def value(self, slot: int) -> Any:
        """What the sample had there: of a tensor shape and type only, numbers as they are."""
        return self._outline[slot]

    def shape(self, slot: int) -> tuple[int, ...]:
        """Of the whole tensor; () for what is none."""
        value = self._outline[slot]
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def want(self, slot: int, layout: Layout) -> int:
        """The slot that has the tensor in this layout; a step that moves it is put in if need be."""
        move = mover(self.layout(slot), layout, self.shape(slot), self.mesh.model, self.traffic)
        return slot if move is None else self._with(slot, layout, move, ("layout", slot, layout))

    def fetch(self, slot: int, ranges: Ranges) -> Mover | None:
        """What takes the local tensor to these ranges, for use within a step; None if it has them. The layout has to be
        whole or of the same axis.
        """
        return mover(self.layout(slot), ranges, self.shape(slot), self.mesh.model, self.traffic)

    def part(self, slot: int, dim: int, bounds: tuple[int, ...]) -> int:
        """The slot that has this worker's range of a weight, a statistic or a constant along `dim`.

        If nothing else reads a weight or a statistic, the worker keeps no more of it; see GraphModule.hold.
        """
        if slot == NOTHING or slot in self._held:
            return slot
        kept = self._holdable.get(slot)
        if kept is not None:
            self.module.hold(kept, Part(dim, bounds, self.mesh.model))
            self._held.add(slot)
            return slot
        return self.want(slot, Split(dim, bounds))

    def even(self, slot: int, axis: int) -> Split:
        return Split(axis, even(self.shape(slot)[axis], self.size))

    # ---- the plan

    def _rewritten(self, plan: Plan, outputs: Sequence[int]) -> tuple[Sequence[Step], Sequence[int]]:
        self._plan = plan
        readers: dict[int, int] = defaultdict(int)
        for step in plan.steps:
            for slot in step.inputs:
                readers[slot] += 1
        for slot in outputs:
            readers[slot] += 1
        self._held: set[int] = set()
        self._holdable = self.module.holdable(self.parts)
        self._holdable = {slot: name for slot, name in self._holdable.items() if readers[slot] == 1}
        for step in plan.steps:
            self._add(step)
        return self._steps, [self.want(slot, None) for slot in outputs]

    def _add(self, step: Step) -> None:
        found = rules().get(step.node.op_type)
        split = any(self.layout(slot) for slot in step.inputs)
        asked = found is not None and step.described is not None and not step.static
        placed = None
        if asked and found is not None and (split or step.node.op_type in ALWAYS):
            placed = found.decide(self, step)
        gathered = placed is None and split
        if placed is None:
            placed = Placed(step.run, tuple(self.want(slot, None) for slot in step.inputs), None)
        self._steps.append(replace(step, run=placed.run, inputs=placed.inputs))
        self._layouts.update(dict.fromkeys(step.outputs, placed.layout))
        shared = placed.layout is not None or any(self.layout(slot) for slot in placed.inputs)
        name = step.node.name or step.node.output[0]
        if split or placed.layout is not None or (asked and step.node.op_type in LAYERS):
            self.decisions.append(Decision(name, step.node.op_type, placed.layout, shared, gathered))

    def _with(self, slot: int, layout: Layout, run: Mover, key: tuple[Any, ...]) -> int:
        if key not in self._moved:
            new = self._moved[key] = self._plan.slot(key)
            self._outline += [None] * (new + 1 - len(self._outline))
            self._outline[new], self._layouts[new] = self._outline[slot], layout
            node = onnx.NodeProto(op_type="Move", name=f"move {slot}", output=[f"moved {slot} {layout}"])
            self._steps.append(Step(run, (slot,), (new,), node, False))
        return self._moved[key]


def split_by(how: str) -> Choose:
    """Splits every layer by `how`, as `--parallel` names it. Matrix products of a network whose images are split are
    done as their input is: by channels behind a Flatten, else whole.
    """

    def choose(placer: Placing, step: Step) -> str:
        return "follow" if how in ("height", "width") and step.node.op_type != "Conv" else how

    return choose
