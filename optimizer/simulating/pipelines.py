"""A step of a pipeline: consecutive layers on each stage, batches cut into micro-batches.

With m micro-batches and S stages a stage is idle (S-1)/(m+S-1) of the time (Huang et al., "GPipe", NeurIPS 2019; Narayanan et
al., "PipeDream", SOSP 2019, whose order 1F1B keeps activations of S micro-batches at most).
"""

import itertools
from collections.abc import Sequence

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.simulating.step import Step
from onnx_lathe.runtime.training.parallel.costs import ELEMENT_BYTES, Cost, Group, Machine, cost_of, rounds
from onnx_lathe.runtime.training.parallel.geometry import Layer, largest
from onnx_lathe.runtime.training.parallel.grid import Pipeline


def pipeline_step(layers: Sequence[Layer], shape: Pipeline, batch: int, machine: Machine) -> Step:
    """Raises UsageError for more stages than layers, or more micro-batches than samples."""
    own = largest(batch, shape.data)
    if shape.stages > len(layers):
        raise UsageError(f"{shape.stages} stages are more than the {len(layers)} layers")
    if shape.micro > own:
        raise UsageError(f"{own} samples are too few for {shape.micro} micro-batches")
    micro = largest(own, shape.micro)
    costs = [cost_of(layer, "whole", Group(1, micro)) for layer in layers]
    times = [machine.arithmetic(cost) for cost in costs]
    cuts = balanced(times, shape.stages)
    rows = [(sum(times[first:last]), _crossing(layers, last, micro, machine)) for first, last in cuts]
    turns = shape.micro + shape.stages - 1
    slowest = max(time + moved for time, moved in rows)
    sums = [_summed(layers[first:last], shape.data, machine) for first, last in cuts]
    arithmetic = shape.micro * max(time for time, _ in rows)
    return Step(
        arithmetic,
        turns * slowest - arithmetic,
        max(sums),
        turns * slowest + max(sums),
        max(_memory(costs[first:last], shape, stage) for stage, (first, last) in enumerate(cuts)),
    )


def balanced(times: Sequence[float], parts: int) -> list[tuple[int, int]]:
    """Bounds of consecutive parts, none empty, whose largest sum is least."""
    sums = [0.0]
    for time in times:
        sums.append(sums[-1] + time)
    best = [(0.0 if end == 0 else float("inf"), [0]) for end in range(len(times) + 1)]
    for part in range(1, parts + 1):
        best = [
            min(
                (
                    (max(best[start][0], sums[end] - sums[start]), [*best[start][1], end])
                    for start in range(part - 1, end)
                ),
                default=(float("inf"), [0]),
                key=lambda found: found[0],
            )
            for end in range(len(times) + 1)
        ]
    bounds = best[-1][1]
    return list(itertools.pairwise(bounds))


def _crossing(layers: Sequence[Layer], cut: int, micro: int, machine: Machine) -> float:
    """Seconds for what crosses a cut, forward and backward."""
    if cut >= len(layers):
        return 0.0
    live = {place for layer in layers[cut:] for place in layer.reads if place < cut}
    sent = ELEMENT_BYTES * micro * sum(layers[place].result_size for place in live)
    return 2 * machine.communication(1, sent)


def _summed(layers: Sequence[Layer], data: int, machine: Machine) -> float:
    weights = ELEMENT_BYTES * sum(layer.weights for layer in layers)
    return machine.communication(2 * rounds(data), 2 * (data - 1) / data * weights)


def _memory(costs: Sequence[Cost], shape: Pipeline, stage: int) -> float:
    held = min(shape.micro, shape.stages - stage) if shape.schedule == "1f1b" else shape.micro
    return sum(cost.weights + held * cost.kept for cost in costs)
