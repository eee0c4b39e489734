"""What `optimize run` shows."""

from rich.console import Console
from rich.markup import escape

from onnx_lathe.optimizer.observing import Observation
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.units import shown, size
from onnx_lathe.optimizer.report.ways import show_ways


def show_observation(found: Observation, console: Console) -> None:
    """Outputs, metrics and times; those of the other model beside them."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    console.print(
        f"{found.model} ({size(found.size_bytes)}) in {found.library} on {found.device or threads}: {found.data}",
        markup=False,
    )
    _show_outputs(found, console)
    table = plain_table("", "model", *(["against"] if found.against else []))
    other = found.against
    names = [name for name in found.metrics if _is_shown(name, found)]
    for name in names:
        row = [escape(name), shown(name.split("[")[0], found.metrics[name])]
        table.add_row(*row, *([shown(name, other.metrics.get(name))] if other else []))
    timings = [one for one in (found.latency, other.latency if other else None) if one]
    if timings:
        table.add_row("latency", *(f"{one.median_ms:.3f} ms" for one in timings))
        table.add_row("8 of 10 calls", *(f"{one.low_ms:.3f} to {one.high_ms:.3f} ms" for one in timings))
        table.add_row("99 of 100 calls", *(f"below {one.p99_ms:.3f} ms" for one in timings))
    if other:
        table.add_row("size", size(found.size_bytes), size(other.size_bytes))
    console.print(table)
    show_ways(found.as_json()["ways"], console)
    if other and other.latency_ratio is not None:
        ratio = other.latency_ratio
        word = f"{ratio:.2f}x as fast as" if ratio >= 1 else f"{1 / ratio:.2f}x slower than"
        console.print(f"{word} {other.model} in {other.library}, run in turn", markup=False)


def _is_shown(name: str, found: Observation) -> bool:
    """That of one output repeats the metric of all where there is but one, and all were compared."""
    whole, of_one, _ = name.partition("[")
    return not of_one or len(found.outputs) > 1 or whole not in found.metrics


def _show_outputs(found: Observation, console: Console) -> None:
    table = plain_table("output", "type", "shape", "min", "max", "mean")
    for one in found.outputs:
        numbers = ("-" if value is None else f"{value:.5g}" for value in (one.minimum, one.maximum, one.mean))
        table.add_row(escape(one.name), one.dtype, "x".join(map(str, one.shape)) or "1", *numbers)
        if one.not_finite:
            table.add_row("", "", f"{one.not_finite:,} values are not finite", "", "", "")
    console.print(table)
