"""What the cost model has to know of the machines, measured as a training starts: latency and bandwidth between workers,
the speed of each layer at the shapes that a worker would have, and how much memory is free.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.members import Members
from onnx_lathe.runtime.training.parallel.costs import HEIGHT, WAYS, Group, cost_of, refusal, rounds
from onnx_lathe.runtime.training.parallel.geometry import CONV, GEMM, Axis, Layer, Product, largest

SMALL_BYTES, LARGE_BYTES = 4096, 2**21
TIMES = 7
"""Of so many the median is taken."""
FLOPS = 5e7
"""Of a layer as many samples are tried as make about so much."""
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

Most = Callable[..., list[float]]


def link(members: Members, device: torch.device, most: Most) -> tuple[float, float]:
    """(seconds of a message, bytes a second that a worker sends), of the slowest worker. All of them have to call it."""
    share = (members.size - 1) / members.size
    small, large = (torch.zeros(size // 4, device=device) for size in (SMALL_BYTES, LARGE_BYTES))

    def summed(tensor: Tensor) -> float:
        return _seconds(lambda: members.add(tensor), device)

    def swapped(tensor: Tensor) -> float:
        pieces = list(tensor.chunk(members.size))
        return _seconds(lambda: members.swap(pieces, [len(pieces[members.rank])] * members.size), device)

    of_sums, of_swaps = summed(small), swapped(small)
    latency = max(of_sums / (2 * rounds(members.size)), of_swaps / rounds(members.size))
    each = [
        max(summed(large) - of_sums, 1e-9) / (2 * share * LARGE_BYTES),
        max(swapped(large) - of_swaps, 1e-9) / (share * LARGE_BYTES),
    ]
    latency, per_byte = most(latency, max(each))
    return latency, 1 / per_byte


def rates(
    layers: Sequence[Layer], cuts: Iterable[tuple[Group, str]], device: torch.device, most: Most
) -> Callable[[Product], float]:
    """FLOP/s of the slowest worker at each product that a layer is cut into by `cuts`: groups, and ways that they can go.
    All workers have to call it; what is no product of its own gets the median.
    """
    found: dict[Product, float] = {}
    for group, way in cuts:
        for layer in layers:
            product = _product(layer, way, group)
            if product is not None and product not in found:
                flops, call = _ready(*_own(layer, way, group), device)
                found[product] = _seconds(call, device, 3) / flops
    if not found:
        return lambda product: math.inf
    slowest = dict(zip(found, most(*found.values()), strict=True))
    usual = statistics.median(slowest.values())
    return lambda product: 1 / slowest.get(product, usual)


def _product(layer: Layer, way: str, group: Group) -> Product | None:
    if layer.kind not in (CONV, GEMM) or refusal(layer, way, group.workers):
        return None
    return cost_of(layer, way, group).product


def _own(layer: Layer, way: str, group: Group) -> tuple[Layer, int]:
    """(what the worker with the most has of the layer, its samples)."""
    parts, samples = group.workers, group.own_batch
    if way == "data":
        return layer, largest(samples, parts)
    if way in ("height", "width"):
        place = 0 if WAYS[way].reads == HEIGHT else len(layer.axes) - 1
        axes = list(layer.axes)
        axes[place] = replace(axes[place], out=largest(axes[place].out, parts))
        return replace(layer, axes=tuple(axes)), samples
    if way == "filter":
        return replace(layer, filters=largest(layer.filters, parts)), samples
    if way == "channel":
        return replace(layer, channels=largest(layer.channels, parts)), samples
    if way == "local":
        groups = largest(layer.groups, parts)
        own = replace(layer, groups=groups, channels=layer.channels // layer.groups * groups)
        return replace(own, filters=layer.filters // layer.groups * groups), samples
    return layer, samples


def _ready(layer: Layer, samples: int, device: torch.device) -> tuple[int, Callable[[], object]]:
    """(FLOP, what does them)."""
    samples = max(1, min(samples, int(FLOPS / max(layer.product(1).flops, 1))))
    flops = layer.product(samples).flops
    inner = layer.channels // layer.groups
    if layer.kind == GEMM:
        x = torch.zeros(samples * layer.rows, layer.channels, device=device)
        weight = torch.zeros(layer.filters, layer.channels, device=device)
        return flops, lambda: F.linear(x, weight)
    # padding counts as input: windows of any geometry then give as many outputs as they should
    sizes = [(axis.out - 1) * axis.stride + axis.extent for axis in layer.axes]
    x = torch.zeros(samples, layer.channels, *sizes, device=device)
    kernel = torch.zeros(layer.filters, inner, *(axis.kernel for axis in layer.axes), device=device)
    convolution = _CONVOLUTIONS[len(layer.axes)]
    axes: Sequence[Axis] = layer.axes
    return flops, lambda: convolution(
        x,
        kernel,
        None,
        tuple(axis.stride for axis in axes),
        0,
        tuple(axis.dilation for axis in axes),
        layer.groups,
    )


def _seconds(run: Callable[[], object], device: torch.device, times: int = TIMES) -> float:
    """The median, after a first one that does not count."""
    found = []
    with torch.no_grad():
        for _ in range(times + 1):
            begin = time.perf_counter()
            run()
            finish(device)
            found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


def finish(device: torch.device) -> None:
    """Waits for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device, neighbours: int, most: Most) -> float:
    """Of the worker that has least; `neighbours` share the memory of a machine. Infinite where the system does not say."""
    if device.type == "cuda":
        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        free = _available() / neighbours
    return -most(-free)[0]


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next(
        (1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf
    )
