"""What a search found, on the terminal."""

from rich.console import Console
from rich.table import Table

from onnx_lathe.optimizer.report.units import shown, size
from onnx_lathe.optimizer.search.record import Choice, SearchRecord

FRONT_SHOWN = 12
LAYERS_SHOWN = 40


def show_search(record: SearchRecord, console: Console) -> None:
    """The front, the winner's settings and figures, or the nearest miss."""
    stopped = len(record.stopped())
    console.print(
        f"{len(record.trials)} trials in {record.seconds:.0f} s, {stopped} of them stopped early; {record.chosen_on}",
        markup=False,
    )
    if record.front:
        _show_front(record, console)
    if record.winner is not None:
        console.print("winner, on the samples that settings are chosen on:", markup=False)
        _show_choice(record, record.winner, console)
    if record.nearest_miss is not None:
        console.print("nearest miss, on the samples that settings are chosen on:", markup=False)
        _show_choice(record, record.nearest_miss, console)
    if record.confirmed is not None:
        one = record.confirmed
        console.print(
            f"on {one['samples']:,} samples that chose nothing (candidates tried: {one['tried']}):",
            markup=False,
        )
        for message in one["messages"]:
            console.print(f"  {message}", markup=False)
    if record.final:
        before, after = record.final["baseline"], record.final["metrics"]
        told = ", ".join(
            f"{name} {shown(name, before[name])} -> {shown(name, after[name])}"
            if name in before
            else f"{name} {shown(name, after[name])}"
            for name in (record.quality, record.minimize)
            if name in after
        )
        console.print(f"on evaluation data: {told}", markup=False)
        for gate in record.final["gates"]:
            console.print(f"gate {'passed' if gate['passed'] else 'FAILED'}  {gate['message']}", markup=False)
        for target in record.final["targets"]:
            files = target["error"] or f"{', '.join(target['files'][:3])} ({size(target['size_bytes'])})"
            console.print(f"target {target['name']}: {files}", markup=False)
    for note in record.notes:
        console.print(note, markup=False)
    if record.reproduce:
        console.print(f"recipe {record.recipe}; to run it: {record.reproduce}", markup=False)
    console.print(record.outcome, markup=False)


def _show_front(record: SearchRecord, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for title in (record.minimize, "of the original", record.quality, "gates"):
        table.add_column(title, justify="right")
    step = max(1, -(-len(record.front) // FRONT_SHOWN))
    for one in record.front[::step]:
        table.add_row(
            _value(record.minimize, one.value),
            f"{100 * one.ratio:.2f} %",
            shown(record.quality, one.metrics.get(record.quality)),
            "pass" if one.passed else "fail",
        )
    console.print(table)


def _show_choice(record: SearchRecord, one: Choice, console: Console) -> None:
    console.print(
        f"  {record.minimize} {_value(record.minimize, one.value)}, {100 * one.ratio:.2f} % of the original's",
        markup=False,
    )
    for message in one.messages:
        console.print(f"  {message}", markup=False)
    for name, value in one.settings.items():
        if not isinstance(value, dict):
            console.print(f"  {name} = {_number(value)}", markup=False)
            continue
        inside = [f"{layer}: {_number(strength)}" for layer, strength in value.items()]
        more = f" and {len(inside) - LAYERS_SHOWN} more" if len(inside) > LAYERS_SHOWN else ""
        console.print(f"  {name} = {{{', '.join(inside[:LAYERS_SHOWN])}}}{more}", markup=False)


def _value(name: str, value: float) -> str:
    return size(value) if name == "packed" else shown(name, value)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
