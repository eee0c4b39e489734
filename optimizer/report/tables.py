"""How tables look."""

from rich.table import Table


def plain_table(*columns: str) -> Table:
    """A table without lines, which a narrow terminal and a text file show alike."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in columns:
        table.add_column(column)
    return table
