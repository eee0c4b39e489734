"""What the command shows: progress on a terminal, and the tables of a comparison."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.runtime.targets.jetson.device.built import place
from onnx_lathe.runtime.targets.jetson.device.verifying import WAYS

LISTED = 12
DIFFERING = 0.01
"""Share of an output's integers that may be others."""


def quiet(text: str) -> None:
    """Shows nothing."""


def progress(text: str) -> None:
    """One line that the next one takes the place of, on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


def end() -> None:
    """Takes the line of `progress` away."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def on_gpu(layers: Sequence[str]) -> str:
    """Of an engine for DLA, what its builder leaves to the GPU; model.engine.json has all names."""
    if not layers:
        return "DLA takes all layers"
    more = f" and {len(layers) - LISTED} more (model.engine.json)" if len(layers) > LISTED else ""
    return f"layers on the GPU, not on DLA: {', '.join(layers[:LISTED])}{more}"


def verified(found: Mapping[str, Any], reference: Mapping[str, Any], core: int | None) -> str:
    """Two tables. `reference`: what is stored of the inputs; `core`: of DLA that the engine
    was built for, or None for the GPU.
    """
    made = "random values" if reference["made_up"] else "samples of the data"
    lines = [f"TensorRT {found['version']}, engine {place(core)}, {found['calls']} stored calls ({made}), against {reference['by']}", ""]  # fmt: skip
    lines.append(f"{'output':<32}{'SQNR':>12}{'same top-1':>14}")
    for output in found["outputs"]:
        lines.append(f"{output['name'][:31]:<32}{_sqnr(output):>12}{_top1(output):>14}")
    shapes = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in found["shapes"].items()
    )
    lines += ["", f"{'latency of ' + shapes:<32}", f"{'':<32}{'median':>12}{'99th of 100':>14}{'calls':>8}"]
    for way, title in WAYS.items():
        one = found["latency"][way]
        if "reason" in one:
            lines.append(f"{title:<32}none: {one['reason']}")
        else:
            times = f"{one['median_ms']:.3f} ms".rjust(12) + f"{one['p99_ms']:.3f} ms".rjust(14)
            lines.append(f"{title:<32}{times}{one['calls']:>8}")
    return "\n".join(lines)


def too_different(found: Mapping[str, Any], least_db: float) -> str:
    """Outputs that differ more than they may; empty if none does."""
    wrong = []
    for output in found["outputs"]:
        if "shapes" in output:
            wrong.append(f"output '{output['name']}' is {output['shapes'][1]}, not {output['shapes'][0]}")
        elif output.get("sqnr_db", math.inf) < least_db:
            wrong.append(f"output '{output['name']}' has {_sqnr(output)}, below {least_db:g} dB")
        elif output.get("differ", 0.0) > DIFFERING:
            wrong.append(f"{100 * output['differ']:.2f} % of output '{output['name']}' are other values")
    return ", ".join(wrong)


def _sqnr(output: Mapping[str, Any]) -> str:
    if "shapes" in output:
        return "other shape"
    if "differ" in output:
        return f"{100 * output['differ']:.2f} % differ"
    value = output["sqnr_db"]
    return "equal" if value == math.inf else f"{value:.1f} dB"


def _top1(output: Mapping[str, Any]) -> str:
    share = output.get("top1")
    if share is None:
        return ""
    nan = f", {output['rows_with_nan']} with NaN" if output.get("rows_with_nan") else ""
    return f"{100 * share:.2f} % of {output['rows']}{nan}"
