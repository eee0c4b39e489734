"""Style and script of the page of `optimize diff`."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a6270; --paper: #fff; --line: #d9dde3; --row: #f5f7f9;
  --bar: #2f6fb7; --bad: #b3261e; --badrow: #fdecea }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a7afbb; --paper: #15181c; --line: #363c45;
  --row: #1d2127; --bar: #7db2ee; --bad: #ff8a80; --badrow: #3a1f1d } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1400px; margin: 0 auto; padding: 16px }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 12px } dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
.verdict { font-weight: 600; overflow-wrap: anywhere } li { overflow-wrap: anywhere }
.wide { overflow-x: auto; max-height: 80vh; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 4px 8px; white-space: nowrap; font-weight: 400 }
tbody th { max-width: 26rem; overflow: hidden; text-overflow: ellipsis }
tbody tr:nth-child(even) { background: var(--row) } tbody tr.below { background: var(--badrow) }
thead th { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); padding: 0 }
thead button { all: unset; cursor: pointer; padding: 6px 8px; font-weight: 600; display: block }
thead button:focus-visible { outline: 2px solid var(--bar); outline-offset: -2px }
th[aria-sort=ascending] button::after { content: " \\2191" } th[aria-sort=descending] button::after { content: " \\2193" }
.tag { color: var(--bad); font-size: 11px; border: 1px solid currentColor; border-radius: 8px; padding: 0 5px }
.bar { display: block; width: 90px; height: 4px; background: var(--line) }
.bar i { display: block; height: 100%; background: var(--bar) }
tr.below .bar i { background: var(--bad) }
.hist { display: inline-flex; align-items: flex-end; gap: 1px; height: 18px; width: 64px }
.hist i { flex: 1; background: var(--bar); min-height: 1px }
footer { color: var(--soft); margin: 2rem 0 1rem }
@media (max-width: 600px) { main { padding: 10px } tbody th { max-width: 11rem } }
"""

SCRIPT = """
for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0]
  const column = [...head.parentElement.children].indexOf(head)
  const down = head.getAttribute("aria-sort") === "ascending"
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort")
  head.setAttribute("aria-sort", down ? "descending" : "ascending")
  const value = row => { const cell = row.cells[column]; return cell.dataset.v ?? cell.textContent.replaceAll(",", "") }
  const order = (a, b) => { const x = value(a), y = value(b), n = x - y
    return isNaN(n) ? x.localeCompare(y) : n }
  const rows = [...body.rows].sort(order)
  body.append(...(down ? rows.reverse() : rows))
})
"""
