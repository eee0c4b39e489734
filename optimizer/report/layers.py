"""Tables about the layers of a model: sizes, and what really runs in INT8."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement

from onnx_lathe.optimizer.check import Check
from onnx_lathe.optimizer.inspect import LayerRow, Size
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.terminal import FILE_WIDTH
from onnx_lathe.optimizer.report.units import count, size


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """Per target, the layers with the kernel's type and the reason, how many run in INT8, and what is refused."""
    for check in checks:
        table = plain_table("layer", "op", "runs in", "why")
        for layer in check.layers:
            table.add_row(
                escape(layer.node), layer.op, "INT8" if layer.int8 else "float", escape(layer.reason)
            )
        if table.row_count:
            console.print(table)
        console.print(f"{check.target}: {check.int8} of {len(check.layers)} layers run in INT8", markup=False)
        if check.refused:
            _show_refused(check, console)


def _show_refused(check: Check, console: Console) -> None:
    table = plain_table("node", "op", "refused because")
    for node, op, reason in check.refused:
        table.add_row(escape(node), escape(op), escape(reason))
    console.print(table)
    count = len(check.refused)
    nodes = "1 node" if count == 1 else f"{count} nodes"
    console.print(f"{check.target}: refuses {nodes}: a build fails", markup=False)


def show_layers(rows: Sequence[LayerRow], whole: Size, console: Console) -> None:
    """Per-layer table of a model, with totals."""
    table = plain_table("layer", "op", "weight", "output", "parameters", "zeros", "bytes", "MACs")
    for column in table.columns[4:]:
        column.justify = "right"
    inside = any(row.place for row in rows)
    if inside:
        table.add_column("inside")
    for row in rows:
        table.add_row(
            escape(row.node),
            row.op,
            "x".join(map(str, row.weight_shape)),
            "?" if row.output_shape is None else "x".join(map(str, row.output_shape)),
            count(row.parameters),
            f"{100 * row.zeros / row.weights:.1f} %" if row.weights else "shared" * bool(row.weight_shape),
            size(row.weight_bytes),
            "?" if row.macs is None else count(row.macs),
            *([escape(row.place)] if inside else []),
        )
    macs = "?" if whole.macs is None else count(whole.macs)
    table.add_row(
        "all",
        "",
        "",
        "",
        count(whole.parameters),
        f"{100 * whole.sparsity:.1f} %",
        size(whole.weight_bytes),
        macs,
    )
    if not console.is_terminal:
        unbounded = console.options.update(max_width=1000)
        console.width = max(FILE_WIDTH, Measurement.get(console, unbounded, table).maximum)
    console.print(table)
    for line in dict.fromkeys(whole.uncounted.values()):
        console.print(line, markup=False)
