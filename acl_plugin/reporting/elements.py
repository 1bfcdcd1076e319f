"""Elements of a page of HTML, each a list of lines."""

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acl_plugin.reporting import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table of texts."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return ['<div class="scroll"><table>', f"<tr>{cells}</tr>", *lines, "</table></div>"]


def figure(drawn: "Figure", caption: str) -> list[str]:
    """Return a figure with its caption."""
    source = base64.b64encode(figures.svg(drawn)).decode()
    text = html.escape(caption)
    return [f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{source}"></figure><p>{text}.</p>']


def text(lines: Sequence[str]) -> list[str]:
    """Return lines in a font of fixed width."""
    return ["<pre>" + html.escape("\n".join(lines)) + "</pre>"]


def missing(command: str, why: str = "Not measured yet:") -> str:
    """Return the line for a part that a command makes."""
    return f"<p class=missing>{why} <code>{html.escape(command)}</code></p>"
