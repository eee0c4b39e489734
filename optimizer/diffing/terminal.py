"""What `optimize diff` and `optimize debug` print."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from onnx_lathe.optimizer.diffing.debug import Culprit, Debugged
from onnx_lathe.optimizer.diffing.diff import Diff, TensorError
from onnx_lathe.optimizer.report.tables import plain_table

SHOWN = 40
"""Rows of a table; the rest is in the page and in --json."""
BLOCKS = " ▁▂▃▄▅▆▇█"


def show_diff(found: Diff, console: Console, worst_first: bool) -> None:
    """What is other in the graphs, weights and tensors, and where they part."""
    console.print(
        f"A {found.base}\nB {found.candidate}\non {found.data}, {_count(found.calls, 'call')}", markup=False
    )
    _show_structure(found, console)
    _show_stored(found, console)
    rows = found.worst_first() if worst_first else found.tensors
    table = plain_table("tensor of B", "operator", "of A", "shape", "SQNR", "max abs", "max rel", "errors")
    for column in (table.columns[0], table.columns[2]):
        column.overflow = "fold"
    shown = _chosen(rows)
    for row in shown:
        mark = "  output" if row.output else ""
        table.add_row(
            escape(row.name) + mark, row.operator, escape("" if row.base == row.name else row.base), _shape(row),
            closeness(row), f"{row.max_abs:.3g}", f"{row.max_relative:.3g}", sparkline(row.histogram),
        )  # fmt: skip
    if rows:
        console.print(table)
    if len(shown) < len(rows):
        console.print(
            f"{len(shown)} of {len(rows)} tensors: the worst and all outputs; --html and --json have all",
            markup=False,
        )
    if found.unpaired:
        console.print(f"{_count(found.unpaired, 'tensor')} of B without a counterpart in A", markup=False)
    console.print(parting(found), markup=False)


def parting(found: Diff) -> str:
    """One line: where the models part."""
    first = next((one for one in found.tensors if one.name == found.parts_at), None)
    if first is None:
        worst = min(found.tensors, key=lambda one: one.closeness, default=None)
        tail = "" if worst is None else f"; the worst is '{worst.name}', {closeness(worst)}"
        if found.recovered:
            return (
                f"they do not part: no output is below {found.at:g} dB; {_count(len(found.recovered), 'tensor')} inside "
                f"{'is' if len(found.recovered) == 1 else 'are'}, such as '{found.recovered[0]}', which what reads "
                "them makes good"
            )
        return f"they do not part: no tensor is below {found.at:g} dB{tail}"
    node = f" of {first.operator} '{first.node}'" if first.operator else ""
    return f"they part at '{first.name}'{node}: {closeness(first)}, the first below {found.at:g} dB that reaches an output (--at sets another)"


def closeness(row: TensorError) -> str:
    """The figure that says how near a tensor is, in words where it is none."""
    if row.verdict == "shape":
        return f"was {'x'.join(map(str, row.base_shape)) or 'scalar'}"
    if row.verdict == "not finite":
        return f"{row.not_finite:,} not finite"
    if row.verdict == "equal":
        return "equal"
    return f"{row.differing / max(row.values, 1):.2%} differ" if row.sqnr is None else f"{row.sqnr:.1f} dB"


def sparkline(histogram: Sequence[int]) -> str:
    """Eight bars from errors below 1e-6 of the root mean square to those above it."""
    most = max(histogram, default=0)
    if not most:
        return ""
    return "".join(BLOCKS[math.ceil(8 * count / most)] for count in histogram)


def show_debugged(found: Debugged, console: Console) -> None:
    """The layers to blame, or that there is none."""
    for culprit in found.culprits:
        _show_culprit(culprit, console)
    if not found.culprits:
        console.print(nothing(found), markup=False)
    elif found.failing > len(found.culprits):
        more = found.failing - len(found.culprits)
        console.print(
            f"{_count(more, 'more layer')} below {found.limit:.1f} dB; --top {found.failing} writes all",
            markup=False,
        )


def nothing(found: Debugged) -> str:
    """One line: that no layer is to blame, and what then."""
    if math.isinf(found.limit):
        return f"no node of {found.candidate} fails by itself: {found.notes[-1]}"
    worst = min(found.layers, key=lambda one: one.own, default=None)
    if worst is None:
        return f"nothing found: no tensor of {found.candidate} has a counterpart in {found.base}"
    own = "equal" if math.isinf(worst.own) else f"{worst.own:.1f} dB"
    return (
        f"nothing found: no layer is below {found.limit:.1f} dB by itself, the worst is '{worst.node}' ({own})"
        f"{_together(found.worst_output)}"
    )


def _together(worst: float | None) -> str:
    if worst is None:
        return ""
    if math.isinf(worst):
        return "; outputs are " + ("equal" if worst > 0 else "not finite, or of another shape")
    return f"; with the errors of all layers together the worst output is at {worst:.1f} dB"


def _show_culprit(culprit: Culprit, console: Console) -> None:
    console.print(f"{culprit.operator} '{culprit.node}': {culprit.reason}", markup=False)
    if culprit.accumulated is not None and math.isfinite(culprit.accumulated):
        console.print(f"  in the whole model its result is at {culprit.accumulated:.1f} dB", markup=False)
    for one in culprit.stored[:SHOWN]:
        console.print(f"  not as in A: {one}", markup=False)
    count = len(culprit.nodes)
    console.print(
        f"  {culprit.folder}: {_count(count, 'node')} ({', '.join(culprit.nodes[:6])})", markup=False
    )
    console.print(f"  {_reproduced(culprit)}", markup=False)


def _reproduced(culprit: Culprit) -> str:
    if culprit.refusal:
        return f"run alone, it fails: {culprit.refusal}"
    if culprit.reproduced is None:
        return "run alone, it does NOT fail: the failure needs the rest of the model"
    if math.isinf(culprit.reproduced):
        return "run alone, it shows the same" if culprit.reproduced < 0 else "run alone, it shows NO error"
    return f"run alone, it gives {culprit.figure} on the call where it is worst"


def _show_structure(found: Diff, console: Console) -> None:
    if found.structure is None:
        return
    changes = [one for one in found.structure.operators if one.added or one.removed or one.changed]
    if not changes:
        console.print("the same nodes in both", markup=False)
        return
    table = plain_table("operator", "A", "B", "added", "removed", "changed")
    for one in changes:
        figures = (one.base, one.candidate, one.added, one.removed, one.changed)
        table.add_row(escape(one.operator), *(str(figure) if figure else "" for figure in figures))
    console.print(table)


def _show_stored(found: Diff, console: Console) -> None:
    if found.structure is None:
        return
    changes = found.structure.initializers
    added, removed = (sum(not getattr(one, side) for one in changes) for side in ("base", "candidate"))
    changed = len(changes) - added - removed
    console.print(
        f"initializers: {found.structure.unchanged} equal, {changed} changed, {added} added, {removed} removed",
        markup=False,
    )
    columns = ["weight", "in B", "values", "differ", "SQNR", "max abs"]
    moved = any(one.reordered is not None for one in found.stored)
    table = plain_table(*columns, *(["in A's order"] if moved else []))
    worst = sorted(found.stored, key=lambda one: math.inf if one.sqnr is None else one.sqnr)[:10]
    for one in worst:
        sqnr = "-" if one.sqnr is None else f"{one.sqnr:.1f} dB"
        broken = f", {one.not_finite} not finite" if one.not_finite else ""
        table.add_row(
            escape(one.name),
            one.form,
            f"{one.values:,}",
            f"{one.differing:,}{broken}",
            sqnr,
            f"{one.max_abs:.3g}",
            *([str(one.reordered or "")] if moved else []),
        )
    if worst:
        console.print(table)
    if len(worst) < len(found.stored):
        console.print(
            f"the worst {len(worst)} of {len(found.stored)} weights with other values", markup=False
        )


def _chosen(rows: Sequence[TensorError]) -> list[TensorError]:
    """All, or the worst and all outputs, in the order given."""
    if len(rows) <= SHOWN:
        return list(rows)
    worst = sorted(rows, key=lambda one: one.closeness)[:SHOWN]
    kept = {id(one) for one in (*worst, *(one for one in rows if one.output))}
    return [one for one in rows if id(one) in kept]


def _shape(row: TensorError) -> str:
    return "x".join(map(str, row.shape)) or "scalar"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
