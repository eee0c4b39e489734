"""Printing what others wrote: names in a model, names of files."""

from typing import Any

from rich.console import Console
from rich.text import Text

from onnx_lathe.errors import printable


class Printer(Console):
    """A console that no name in what it prints can steer, and that any name can be printed on."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)
