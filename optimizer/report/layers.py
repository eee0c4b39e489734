"""Tables of what really runs in INT8, and what a target refuses."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from onnx_lathe.optimizer.check import Check
from onnx_lathe.optimizer.report.tables import plain_table


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
