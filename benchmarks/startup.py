"""Measure how long commands that compute nothing take, as a ratio to the import of PyTorch.

    python -m benchmarks startup

Each command is a process of its own. They take turns with ``python -c "import torch"``; lists are read from the file
that the first call keeps.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from acl_plugin.cli.parser import Parser
from acl_plugin.runs.environment import environment

COMMANDS = {
    "import torch": None,
    "import acl_plugin": None,
    "acl-plugin --help": ["--help"],
    "acl-plugin run --help": ["run", "--help"],
    "acl-plugin list objectives": ["list", "objectives"],
    "acl-plugin list backbones": ["list", "backbones"],
    "a mistake in a command": ["runn"],
    "a mistake in an option": ["run", "--out", "x", "--objective", "acl_dss"],
    "a missing run": ["probe", "missing"],
    "tab completion": ["run", "--objective", "acl"],
}
"""Arguments of ``acl-plugin``; None for code that the name gives."""


def run(*arguments: str) -> dict[str, Any]:
    """Run what the command line describes; return the result."""
    parser = Parser(prog="benchmarks startup", exit_on_error=False)
    parser.add_argument("--repeats", type=int, default=5, help="Measurements of each command.")
    given = parser.parse(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for name in COMMANDS:
            timed(name, folder)  # reads files from the disk, and keeps lists
        for _ in range(given.repeats):
            for name in COMMANDS:
                seconds[name].append(timed(name, folder))
    torch = statistics.median(seconds["import torch"])
    rows = [
        {
            "name": name,
            "seconds": round(statistics.median(each), 3),
            "fastest": round(min(each), 3),
            "slowest": round(max(each), 3),
            "to_torch": round(statistics.median(each) / torch, 3),
        }
        for name, each in seconds.items()
    ]
    return {"settings": {"repeats": given.repeats}, "rows": rows, "environment": environment()}


def timed(name: str, folder: str) -> float:
    """Return the seconds that a process takes."""
    arguments = COMMANDS[name]
    code = ["-c", name] if arguments is None else ["-m", "acl_plugin", *arguments]
    variables = os.environ | {"ACL_PLUGIN_HOME": f"{folder}/home"}
    if name == "tab completion":
        line = " ".join(["acl-plugin", *(arguments or ())])
        variables |= {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
        variables |= {"_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_STDOUT_FILENAME": f"{folder}/offered"}
    started = time.perf_counter()
    subprocess.run([sys.executable, *code], cwd=folder, env=variables, capture_output=True, check=False)
    return time.perf_counter() - started
