"""Times of the ways in which what a target built can be run."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

WAYS = {
    "call": "call by call, with the copies to the GPU and back",
    "cuda_graph": "the same as a CUDA graph",
    "gpu_alone": "on the GPU alone, without the copies",
}


def show_ways(ways: Mapping[str, Any], console: Console, indent: str = "") -> None:
    """`ways`: by name, a measuring.Timing as JSON has it, or why the way is not possible."""
    for way, found in ways.items():
        text = f"not possible: {found}"
        if not isinstance(found, str):
            text = f"{found['median_ms']:.3f} ms, 99 of 100 calls below {found['p99_ms']:.3f} ms"
        console.print(f"{indent}{WAYS.get(way, way)}: {text}", markup=False)
