"""`inspect --html`: the table of layers as one page that opens offline and sorts by every column."""

import json
from collections.abc import Sequence
from html import escape

from onnx_lathe.optimizer.inspecting.rows import Inspection, Row, Whole
from onnx_lathe.optimizer.report.columns import COLUMNS, Column, is_used, sort_rows

STYLE = """
:root { color-scheme: light dark; --line: #8884; --head: Canvas; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem; color: CanvasText; background: Canvas; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
.number { text-align: right; }
thead th { padding: 0; background: var(--head); }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: .3rem .6rem;
  width: 100%; text-align: inherit; cursor: pointer; }
thead button:focus-visible { outline: 2px solid Highlight; outline-offset: -2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tbody th { font-weight: 400; position: sticky; left: 0; background: Canvas; }
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
@media (max-width: 40rem) { tbody th { max-width: 9rem; overflow: hidden; text-overflow: ellipsis; } }
"""

SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0];
const order = [...body.rows];
function key(row, index) { return JSON.parse(row.cells[index].dataset.value); }
for (const button of table.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, index = head.cellIndex, was = head.getAttribute("aria-sort");
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const now = was === "none" ? first : was === first ? other : "none";
    for (const one of table.querySelectorAll("thead th")) one.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", now);
    const sign = now === "descending" ? -1 : 1;
    const rows = now === "none" ? order : [...order].sort((a, b) => {
      const x = key(a, index), y = key(b, index);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    });
    body.replaceChildren(...rows);
  });
}
"""


def page(found: Inspection, title: str, lines: Sequence[str], sort: str | None = None) -> str:
    """All columns that say anything. `lines`: what stands above the table."""
    rows = sort_rows(found.layers, sort)
    columns = [
        column for column in COLUMNS.values() if column.name in ("layer", "op") or is_used(column, rows)
    ]
    heads = "".join(_head(column, sort) for column in columns)
    body = "\n".join(f"<tr>{''.join(_cell(column, row) for column in columns)}</tr>" for row in rows)
    totals = "".join(_total(column, found.whole) for column in columns)
    said = "\n".join(f"<p>{escape(line)}</p>" for line in lines)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{said}\n"
        '<div class="wide" tabindex="0" role="region" aria-label="layers">\n<table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n<tfoot><tr>{totals}</tr></tfoot>\n"
        f"</table>\n</div>\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _kind(column: Column) -> str:
    return ' class="number"' if column.is_number else ""


def _head(column: Column, sort: str | None) -> str:
    by = "descending" if column.is_number else "ascending"
    state = by if column.name == sort else "none"
    button = f'<button type="button" title="{escape(column.help)}">{escape(column.title)}</button>'
    return f'<th scope="col" aria-sort="{state}"{_kind(column)}>{button}</th>'


def _cell(column: Column, row: Row) -> str:
    value = escape(json.dumps(column.value(row)))
    name, scope = ("th", ' scope="row"') if column.name == "layer" else ("td", "")
    title = f' title="{escape(row.node)}"' if scope else ""
    text = escape(column.text(row))
    return f'<{name}{scope}{_kind(column)}{title} data-value="{value}">{text}</{name}>'


def _total(column: Column, whole: Whole) -> str:
    name, scope = ("th", ' scope="row"') if column.name == "layer" else ("td", "")
    return f"<{name}{scope}{_kind(column)}>{escape(column.total(whole))}</{name}>"
