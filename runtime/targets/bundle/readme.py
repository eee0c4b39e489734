"""Parts of the README that the developer of an application reads, alike for all targets. Each is Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.bundle.ports import Port

ORDER = {
    "RGB": "Channels are in the order red, green, blue, as Lathe's loader decodes pictures; if the arrays that the network learned from "
    "hold blue first, {swap}.",
    "GRAY": "The network takes grey levels.",
    "RGBA": "Channels are red, green, blue and alpha.",
}


def files(rows: Sequence[tuple[str, str]]) -> str:
    """(name, what it is) -> a table."""
    table = "\n".join(f"| `{name}` | {what} |" for name, what in rows)
    return f"| file | |\n|---|---|\n{table}"


def ports(inputs: Sequence[Port], outputs: Sequence[Port], called: str = "name", typed: bool = True) -> str:
    """A table of what goes in and out. `called`: the target's word for a tensor in its file; `typed`: whether types are
    worth a column.
    """
    titles = ["", called, "the model's tensor", f"shape of the {called}" if called == "blob" else "shape"]
    titles += ["type"] if typed else []
    rows = [titles, ["---"] * len(titles)]
    for kind, values in (("input", inputs), ("output", outputs)):
        for port in values:
            shown = " x ".join(_size(port, axis) for axis in port.axes) or "1"
            rows.append(
                [kind, f"`{port.name}`", f"`{port.tensor}`", shown] + ([_type(port)] if typed else [])
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def bounded(inputs: Sequence[Port]) -> str:
    """What to say below the table where open sizes have bounds; else nothing."""
    if not any(port.least for port in inputs):
        return ""
    return "Keep sizes between those that the table gives: beyond them, the network may compute what the model does not."


def _size(port: Port, axis: int) -> str:
    size = port.tensor_shape[axis]
    if size is None and port.least:
        return f"{port.least[axis]} to {port.greatest[axis]}"
    return "any" if size is None else str(size)


def _type(port: Port) -> str:
    if not port.is_quantized:
        return port.type
    return f"{port.type}: real = {port.scale:.9g} * (q - {port.zero_point})"


def pixels(found: Pixels | str, function: str, swap: str) -> str:
    """The section on pictures. `function`: of the example, which makes an input of one; `swap`: what to do where
    blue comes first.
    """
    if isinstance(found, str):
        return f"## Pixels\n\nThe application computes the inputs itself: {found}."
    mean, norm = (", ".join(f"{value:.9g}" for value in values) for values in (found.mean, found.norm))
    order = ORDER[found.order].format(swap=swap)
    return (
        f"## Pixels\n\n`{function}` makes the input of a picture of four bytes per pixel: `(pixel - mean) * norm`\n\n"
        f"| mean | norm |\n|---|---|\n| {mean} | {norm} |\n\n{order}"
    )


def measured(verified: Mapping[str, Any] | None) -> str:
    """What running it here has shown."""
    if verified is None:
        return "The files were not run here."
    return (
        f"Run in {verified['in']} on a desktop, its outputs are ONNX Runtime's within {verified['relative_error']:.1e} of their size "
        f"(output `{verified['worst_output']}`; {verified['allowed']:.1e} are allowed). Accuracy and latency there are in Lathe's "
        "`report.json`, under `targets`. No time was measured on a phone."
    )
