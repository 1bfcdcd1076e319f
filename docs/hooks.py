"""Show the tutorial notebook as a page."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """Add ``tutorial.md``, made of the cells of the notebook."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    files.append(File.generated(config, "tutorial.md", content="\n\n".join(map(_markdown, cells))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the page of the notebook in place of its file."""
    return markdown.replace("(tutorial.ipynb)", "(tutorial.md)")


def _markdown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return f"```python\n{source}\n```" if cell["cell_type"] == "code" else source
