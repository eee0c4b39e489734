"""Metrics, sizes and counts as a reader wants them: with units, in three digits."""

import math

from onnx_lathe.optimizer.judging.metrics import METRICS

FRACTIONS = tuple(name for name, metric in METRICS.items() if metric.kind == "fraction")


def shown(key: str, value: float | None, base: float | None = None) -> str:
    """A metric with its unit; sizes and times also as a ratio to `base`."""
    if value is None:
        return "-"
    if key in FRACTIONS:
        return f"{100 * value:.2f} %"
    if key == "sqnr":
        return "equal" if math.isinf(value) else f"{value:.1f} dB"
    ratio = f" ({base / value:.1f}x)" if base and value and base != value else ""
    if key in ("size", "weights", "packed", "memory"):
        return size(value) + ratio
    if key == "latency":
        return f"{value:#.3g} ms{ratio}" if 0 < value < 1 else f"{value:.2f} ms{ratio}"
    return count(value) if key in ("macs", "parameters") else f"{value:.4g}"


def size(value: float) -> str:
    """Bytes in decimal units: 1.72 MB."""
    return f"{count(value)}B" if value >= 1000 else f"{value:.0f} B"


def count(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"
