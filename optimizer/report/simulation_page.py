"""`simulate --html`: curves of time per step over machines, drawn by the library of report.html, and their figures."""

from collections.abc import Sequence
from html import escape

from onnx_lathe.optimizer.report.html.page import asset, embedded, licences, policy, script
from onnx_lathe.optimizer.report.simulation import Rows, end_rows, head, scaling_rows, straggler_rows
from onnx_lathe.optimizer.simulating.scaling import Curve
from onnx_lathe.optimizer.simulating.simulate import Simulation

LIBRARY = "plotly-basic.min.js"


def page(found: Simulation, title: str) -> bytes:
    """One file that opens offline and may fetch nothing."""
    request = found.request
    charts = [
        _chart(f"Strong scaling, {request.batch} samples a step", found.strong),
        _chart(f"Weak scaling, {request.each} samples for each machine", found.weak),
    ]
    scripts = (script(LIBRARY), script("simulation.js"))
    tables = [
        _table("Strong scaling", scaling_rows(found.strong)),
        _table("Where each stops paying", end_rows(found.strong)),
    ]
    tables.append(_table("Weak scaling", scaling_rows(found.weak)))
    if request.stragglers is not None:
        tables.append(_table(f"Stragglers, {request.stragglers.text}", straggler_rows(found)))
    parts = {
        "POLICY": policy(scripts),
        "TITLE": escape(f"Training {title} on up to {request.machines:,} machines"),
        "LEAD": escape(" ".join(head(found))),
        "TABLES": "\n".join(tables),
        "LICENCES": licences((LIBRARY,)),
        "DATA": embedded({"charts": charts}),
        "SCRIPTS": "\n".join(f"<script>{code}</script>" for code in scripts),
    }
    text = asset("simulation.html")
    head_part, *rest = text.split("@@")
    filled = [head_part]
    for place, piece in enumerate(rest):
        filled.append(parts[piece] if place % 2 == 0 else piece)
    return "".join(filled).encode(errors="replace")


def _chart(title: str, curves: Sequence[Curve]) -> dict[str, object]:
    lines = [
        {
            "name": one.strategy,
            "machines": [point.machines for point in one.points],
            "ms": [1e3 * point.step.seconds for point in one.points],
            "how": [
                f"{point.how}, {100 * one.efficiency(point):.0f} % efficient{'' if point.fits else ', too little memory'}"
                for point in one.points
            ],
        }
        for one in curves
    ]
    return {"title": title, "lines": lines}


def _table(title: str, found: Rows) -> str:
    columns, rows = found
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<h2>{escape(title)}</h2>\n<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">\n'
        f"<table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
