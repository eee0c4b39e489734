"""What `simulate` prints: time per step against the number of machines, and where each strategy stops paying."""

from collections.abc import Sequence

from rich.console import Console

from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.terminal import FILE_WIDTH
from onnx_lathe.optimizer.report.units import count, size
from onnx_lathe.optimizer.simulating.scaling import WORTH, Curve, Point
from onnx_lathe.optimizer.simulating.simulate import Simulation

Rows = tuple[list[str], list[list[str]]]


def show_simulation(found: Simulation, console: Console) -> None:
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for line in head(found):
        console.print(line, markup=False)
    request = found.request
    console.print(
        f"\nstrong scaling: {request.batch} samples a step, milliseconds (efficiency)", markup=False
    )
    _print(scaling_rows(found.strong), console)
    console.print()
    _print(end_rows(found.strong), console)
    console.print(
        f"\nweak scaling: {request.each} samples for each machine, milliseconds (efficiency)", markup=False
    )
    _print(scaling_rows(found.weak), console)
    if request.stragglers is not None:
        console.print(
            f"\nstragglers, {request.stragglers.text}: milliseconds between updates (samples a second)",
            markup=False,
        )
        _print(straggler_rows(found), console)
    for line in refusals(found):
        console.print(line, markup=False)
    for line in found.notes:
        console.print(f"not counted: {line}", markup=False)


def head(found: Simulation) -> list[str]:
    """What is simulated, of which machines."""
    machine = found.request.machine
    assert not callable(machine.rate)
    memory = "" if machine.memory == float("inf") else f", {size(machine.memory)} of memory"
    return [
        f"{count(found.parameters)} weights, {count(found.flops)} FLOP a sample forward; machines of {count(machine.rate)}FLOP/s, "
        f"{size(machine.bandwidth)}/s, {seconds(machine.latency)} a message{memory}"
    ]


def scaling_rows(curves: Sequence[Curve]) -> Rows:
    """(titles, cells): a row for each number of machines."""
    counts = sorted({point.machines for one in curves for point in one.points})
    rows = []
    for machines in counts:
        found = [next((p for p in one.points if p.machines == machines), None) for one in curves]
        cells = [_cell(one, point) for one, point in zip(curves, found, strict=True)]
        rows.append([f"{machines:,}", *cells])
    return ["machines", *(one.strategy for one in curves)], rows


def _cell(found: Curve, point: Point | None) -> str:
    if point is None:
        return "-"
    how = "" if point.how == found.strategy else f" {point.how}"
    full = "" if point.fits else ", too little memory"
    return f"{milliseconds(point.step.seconds)} ({100 * found.efficiency(point):.0f} %{how}{full})"


def end_rows(curves: Sequence[Curve]) -> Rows:
    """(titles, cells): where each strategy stops paying."""
    columns = [
        "strategy", "fastest on", "as", "ms", "of that arithmetic", "activations", "weights", "memory",
        f"{100 * WORTH:.0f} % up to",
    ]  # fmt: skip
    return columns, [_end(one) for one in curves]


def _end(found: Curve) -> list[str]:
    best, worth = found.fastest, found.worth
    if best is None:
        least = min(point.step.memory for point in found.points)
        return [found.strategy, "-", f"needs {size(least)}", *[""] * 6]
    step = best.step
    parts = [milliseconds(one) for one in (step.seconds, step.arithmetic, step.moves, step.exposed)]
    return [
        found.strategy, f"{best.machines:,}", best.how, *parts, size(step.memory),
        "-" if worth is None else f"{worth.machines:,}",
    ]  # fmt: skip


def refusals(found: Simulation) -> list[str]:
    """Why a strategy has no figure for some numbers of machines, in the words for the last of them."""
    return [
        f"{one.strategy}: not on {', '.join(map(str, one.refused))}: {list(one.refused.values())[-1]}"
        for one in found.strong
        if one.refused
    ]


def straggler_rows(found: Simulation) -> Rows:
    columns = ["machines", "all wait", "backups", "all but these", "nobody waits"]
    rows = [
        [
            f"{row.machines:,}",
            _pace(row.synchronous_s, row.synchronous_rate),
            str(row.backups),
            _pace(row.backup_s, row.backup_rate),
            _pace(row.asynchronous_s, row.asynchronous_rate),
        ]
        for row in found.stragglers
    ]
    return columns, rows


def _pace(time: float, rate: float) -> str:
    return f"{milliseconds(time)} ({count(rate)})"


def milliseconds(value: float) -> str:
    """Without a unit, in three digits."""
    found = 1e3 * value
    return f"{found:,.0f}" if found >= 1000 else f"{found:.3g}"


def seconds(value: float) -> str:
    for limit, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _print(found: Rows, console: Console) -> None:
    columns, rows = found
    table = plain_table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
