"""A page of HTML, and its elements, each a list of lines."""

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acl_plugin.reporting import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f3f5f7; --line: #d5dae0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171b; --soft: #1e2329; --line: #363d46; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; white-space: nowrap; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; font-size: .8rem; }
figure { margin: 1rem 0; background: #ffffff; border-radius: .4rem; padding: .5rem; overflow-x: auto; }
figure img { max-width: 100%; height: auto; display: block; margin: auto; }
.missing { color: #9a6700; } @media (prefers-color-scheme: dark) { .missing { color: #d4a72c; } }
details summary { cursor: pointer; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """Return a page of lines of HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


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
