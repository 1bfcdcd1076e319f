"""Dispatch the commands of the command line.

Exit status 0: success. 2: usage error, reported in one line; nothing was written. 1: any other error.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

from acl_plugin.cli import completion
from acl_plugin.cli.parser import COMMANDS, PROGRAM
from acl_plugin.errors import EvaluationStopped, TrainingStopped, UsageError, as_flags, unknown
from acl_plugin.runtime import memory
from acl_plugin.runtime.messages import on_stderr
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.signals import interrupt

CLOSED_PIPE = 141
"""Exit status after writing into a pipe that nothing reads, as shells show it: 128 and the number of the signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; 141 if the reader of the output closes the pipe, as by convention."""
    try:
        try:
            given = list(sys.argv[1:] if arguments is None else arguments)
            with on_stderr(), _as_command(silent="--quiet" in given):
                return _main([argument for argument in given if argument != "--quiet"])
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
    except BrokenPipeError:  # as by `| head`; redirect stdout, because the interpreter would flush it again and fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nowhere, number)
        return CLOSED_PIPE


def _main(given: list[str]) -> int:
    if completion.wanted():
        name = completion.command(COMMANDS)
        if name:
            _dispatch([name])
        return 0
    try:
        return _dispatch(given)
    except UsageError as error:
        print(f"{PROGRAM}: {as_flags(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"{PROGRAM}: stopped: {error}; the last good checkpoint is kept", file=sys.stderr)
        return 1
    except EvaluationStopped as error:
        print(f"{PROGRAM}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        command = "the same command without --overwrite" if "--overwrite" in given else "the same command"
        print(f"{PROGRAM}: interrupted; {command} resumes from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that cannot be written, ...
        where = f"{error.filename}: " if error.filename else ""
        print(f"{PROGRAM}: {where}{error.strerror or error}; what was written before is whole", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    """Run the command, and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {PROGRAM} COMMAND [OPTIONS]   ({PROGRAM} COMMAND --help lists the options; --quiet: no progress)\n"
        )
        print("\n".join(f"  {name:15}{line}" for name, line in COMMANDS.items()))
        return 0
    if arguments[0] == "--version":
        from acl_plugin import __version__

        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return _function(name)(rest) or 0


_FUNCTIONS = {
    "audit": "commands:audit_runs",
    "benchmark": "benchmark:benchmark",
    "doctor": "doctor:doctor",
    "evaluate": "evaluate:evaluate",
    "export": "commands:export_run",
    "find-rate": "find_rate:find_rate",
    "import": "commands:import_checkpoint",
    "list": "lists:show_list",
    "pretrain": "commands:pretrain",
    "probe": "commands:probe_run",
    "pseudo-labels": "commands:make_pseudo_labels",
    "report": "commands:write_report",
    "run": "commands:run",
    "status": "commands:show_status",
    "transfer": "commands:transfer_run",
}
"""Module and function of each command."""


def _function(name: str) -> Callable[[list[str]], int | None]:
    module, _, function = _FUNCTIONS[name].partition(":")
    return getattr(importlib.import_module(f"acl_plugin.cli.{module}"), function)


@contextlib.contextmanager
def _as_command(silent: bool) -> Iterator[None]:
    """Set what belongs to a command and not to a library: signals, memory, progress bars, output, warnings."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes may have letters that a console has not
            with contextlib.suppress(OSError, ValueError):  # closed, or redirected after it was opened
                stream.reconfigure(errors="backslashreplace")
    before = Progress.silent
    in_main_thread = threading.current_thread() is threading.main_thread()
    # schedulers send SIGTERM; treat it as SIGINT
    handler = signal.signal(signal.SIGTERM, interrupt) if in_main_thread else None
    Progress.silent = silent
    memory.keep_freed()
    try:
        with warnings.catch_warnings():
            _ignore_warnings()
            yield
    finally:
        Progress.silent = before
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _ignore_warnings() -> None:
    """Ignore warnings of other libraries that users cannot act on."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")  # a teacher
    warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated.*")
