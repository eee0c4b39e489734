"""The page of `optimize diff --html`: one file that opens offline, light and dark, down to the width of a phone."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from onnx_lathe.optimizer.diffing.diff import Diff, TensorError
from onnx_lathe.optimizer.diffing.page_parts import SCRIPT, STYLE
from onnx_lathe.optimizer.diffing.terminal import closeness, parting
from onnx_lathe.runtime.running.differences import BINS
from onnx_lathe.version import VERSION

BAR_DB = 80.0
"""A bar is full from here on."""


def page(found: Diff) -> str:
    """The whole document."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Diff of {escape(found.base)} and {escape(found.candidate)}</title><style>{STYLE}</style></head><body><main>",
        "<h1>Two models side by side</h1>",
        f"<dl><dt>A</dt><dd>{escape(found.base)}</dd><dt>B</dt><dd>{escape(found.candidate)}</dd>"
        f"<dt>Data</dt><dd>{escape(found.data)}, {found.calls:,} call{'' if found.calls == 1 else 's'}</dd></dl>",
        f'<p class="verdict">{escape(parting(found))}</p>',
        f"<ul>{notes}</ul>" if notes else "",
        _tensors(found),
        _structure(found),
        f"<footer>Lathe {VERSION}</footer></main><script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _tensors(found: Diff) -> str:
    rows = (_tensor(place, row, found) for place, row in enumerate(found.tensors, 1))
    low, high = BINS[0], BINS[-1]
    return (
        "<h2>Tensors</h2><p>In order of execution; a heading sorts. SQNR: signal to noise, in dB. The bars under "
        f"<em>errors</em> count values by error, from below {low:g} of the root mean square to above {high:g} of it.</p>"
        + _table(
            ("tensors", "How far each tensor of B is from A's"),
            (
                "#",
                "Tensor of B",
                "SQNR",
                "Errors",
                "Operator",
                "In A",
                "Matched by",
                "Shape",
                "Max abs",
                "Max relative",
            ),
            rows,
        )
    )


def _tensor(place: int, row: TensorError, found: Diff) -> str:
    kinds = ["parts"] if row.name == found.parts_at else []
    kinds += ["below"] if row.closeness < found.at else []
    mark = ' <span class="tag">output</span>' if row.output else ""
    mark += ' <span class="tag">they part here</span>' if row.name == found.parts_at else ""
    full = min(max(row.closeness, 0.0), BAR_DB) / BAR_DB
    bar = f'<span class="bar"><i style="width:{100 * full:.0f}%"></i></span>'
    order = min(max(row.closeness, -1e3), 1e3)
    cells = (
        f"<td>{place}</td>",
        f'<th scope="row">{escape(row.name)}{mark}</th>',
        f'<td data-v="{order:.3f}">{escape(closeness(row))}{bar}</td>',
        f"<td>{_bars(row.histogram)}</td>",
        f"<td>{escape(row.operator)}</td>",
        f"<td>{escape(row.base)}</td>",
        f"<td>{escape(row.how)}</td>",
        f'<td data-v="{math.prod(row.shape)}">{"x".join(map(str, row.shape)) or "scalar"}</td>',
        f"<td>{row.max_abs:.3g}</td>",
        f"<td>{row.max_relative:.3g}</td>",
    )
    return f'<tr class="{" ".join(kinds)}">{"".join(cells)}</tr>'


def _bars(histogram: Sequence[int]) -> str:
    most = max(histogram, default=0)
    if not most:
        return ""
    edges = ["below " + format(BINS[0], "g"), *(f"from {edge:g}" for edge in BINS)]
    told = ", ".join(f"{edge}: {count:,}" for edge, count in zip(edges, histogram, strict=True) if count)
    bars = "".join(f'<i style="height:{100 * count / most:.0f}%"></i>' for count in histogram)
    return f'<span class="hist" role="img" aria-label="{told}" title="{told}">{bars}</span>'


def _structure(found: Diff) -> str:
    if found.structure is None:
        return ""
    operators = (
        _row(one.operator, (one.base, one.candidate, one.added, one.removed, one.changed))
        for one in found.structure.operators
    )
    stored = (
        _row(
            f"{one.name} ({one.place})" if one.place else one.name,
            (
                one.base or "-",
                one.candidate or "-",
                one.values,
                "-" if one.differing is None else one.differing,
            ),
        )
        for one in found.structure.initializers
    )
    return "\n".join(
        [
            "<h2>Operators</h2>",
            _table(
                ("operators", "Nodes by operator"),
                ("Operator", "A", "B", "Added", "Removed", "Changed"),
                operators,
            ),
            _weights(found) if found.stored else "",
            f"<h2>Initializers</h2><p>{found.structure.unchanged} are equal in both.</p>",
            _table(
                ("stored", "Initializers that are not equal"),
                ("Initializer", "A", "B", "Values", "Differ"),
                stored,
            )
            if found.structure.initializers
            else "",
        ]
    )


def _weights(found: Diff) -> str:
    moved = any(one.reordered is not None for one in found.stored)
    weights = (
        _row(
            one.name,
            (
                one.form,
                one.values,
                one.differing,
                "-" if one.sqnr is None else f"{one.sqnr:.1f}",
                f"{one.max_abs:.3g}",
                *([str(one.reordered or "-")] if moved else []),
            ),
        )
        for one in found.stored
    )
    columns = (
        "Weight",
        "In B",
        "Values",
        "Differ",
        "SQNR, dB",
        "Max abs",
        *(["In A's order"] if moved else []),
    )
    return "<h2>Weights with other values</h2>\n" + _table(("weights", "Weights"), columns, weights)


def _row(name: str, cells: Iterable[object]) -> str:
    tail = "".join(
        f"<td>{escape(format(cell, ',') if isinstance(cell, int) else str(cell))}</td>" for cell in cells
    )
    return f'<tr><th scope="row">{escape(name)}</th>{tail}</tr>'


def _table(named: tuple[str, str], columns: Sequence[str], rows: Iterable[str]) -> str:
    """`named`: (id, what a screen reader calls it)."""
    place, label = named
    head = "".join(f'<th scope="col"><button type="button">{column}</button></th>' for column in columns)
    body = "\n".join(rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table id="{place}">'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
