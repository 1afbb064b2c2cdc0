"""What commands print: tables for people, aligned text for pipes, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads: drawn on a terminal, aligned text elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        for line in _aligned([head, *cells]):
            typer.echo(line)
        return
    table = Table(*head)
    for row in cells:
        table.add_row(*map(Text, row))  # what a server says is text, never markup
    console.print(table)


def print_record(record: Mapping[str, object]) -> None:
    """Print one thing, a line for each of its properties."""
    for line in _aligned([(name, "-" if v is None else str(v)) for name, v in record.items()]):
        typer.echo(line)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
