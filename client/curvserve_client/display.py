"""How sessions and results look in a notebook."""

from collections.abc import Mapping
from html import escape


def html_table(title: str, rows: Mapping[str, object]) -> str:
    """Return a small table with a caption; everything is escaped.

    Args:
        title: the caption.
        rows: name -> value; numbers are shown to six digits.
    """
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:right">{escape(_text(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
