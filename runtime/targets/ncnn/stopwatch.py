"""How long networks take that differ in their convolutions' algorithms alone: run in turn in one process, on one thread.

Layer by layer, each network is one step ahead in turn: what a layer reads was computed just before, and its weights have
been pushed out of the caches by those of all other layers, as when the network runs alone. With light mode off a
blob stays when it is read, so that asking for the next one runs one layer (src/net.cpp, Extractor::extract;
type 1 leaves the packing of the values as it is).

Time is the thread's own on the processor, where the system counts that finely: what others compute meanwhile does not
count then, but for the caches that they use.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.ncnn.running import Opened, as_blob

AS_IT_IS = 1
WARM_UP = 2
"""Rounds that are not counted."""

FINE_S = 1e-6
_now = time.thread_time if time.get_clock_info("thread_time").resolution <= FINE_S else time.perf_counter

Layer = tuple[str, str]
"""The blobs that a layer reads and writes."""
Feeds = Mapping[str, np.ndarray]


def time_layers(
    nets: Sequence[Opened], layers: Sequence[Mapping[str, Layer]], feeds: Feeds, budget: Mapping[str, float]
) -> dict[str, list[list[float]]]:
    """Milliseconds by layer: [rounds, nets]. `layers`: of each net, in the order in which they run."""
    names = list(layers[0])
    found: dict[str, list[list[float]]] = {name: [] for name in names}

    def once(order: Sequence[int]) -> None:
        extractors = [_started(net, feeds) for net in nets]
        for extractor in extractors:
            extractor.set_light_mode(False)
        for name in names:
            times = [0.0] * len(nets)
            for place in order:
                source, top = layers[place][name]
                _extract(extractors[place], source)
                begin = _now()
                _extract(extractors[place], top)
                times[place] = 1e3 * (_now() - begin)
            found[name].append(times)

    _repeat(once, len(nets), budget)
    return {name: rounds[WARM_UP:] for name, rounds in found.items()}


def time_whole(nets: Sequence[Opened], feeds: Feeds, budget: Mapping[str, float]) -> list[list[float]]:
    """Milliseconds: [rounds, nets]."""
    found: list[list[float]] = []

    def once(order: Sequence[int]) -> None:
        times = [0.0] * len(nets)
        for place in order:
            begin = _now()
            extractor = _started(nets[place], feeds)
            for port in nets[place].outputs:
                _extract(extractor, port.blob)
            times[place] = 1e3 * (_now() - begin)
        found.append(times)

    _repeat(once, len(nets), budget)
    return found[WARM_UP:]


def _repeat(once: Callable[[Sequence[int]], None], count: int, budget: Mapping[str, float]) -> None:
    """Rounds, each in another order: nobody is always the first, or behind the same one."""
    generator, started, done = np.random.default_rng(0), time.monotonic(), 0
    while done < WARM_UP + budget["most"]:
        if done >= WARM_UP + budget["least"] and time.monotonic() - started > budget["seconds"]:
            break
        once([int(place) for place in generator.permutation(count)])
        done += 1


def _started(net: Opened, feeds: Feeds) -> Any:
    extractor = net.net.create_extractor()
    for port in net.inputs:
        array = np.ascontiguousarray(as_blob(feeds[port.tensor], port))  # held while it is copied
        extractor.input(port.blob, net.ncnn.Mat(array).clone())
    return extractor


def _extract(extractor: Any, blob: str) -> None:
    failed, _ = extractor.extract(blob, AS_IT_IS)
    if failed:
        raise ModelError(f"ncnn cannot compute its blob '{blob}' (error {failed})")
