"""Commands in copies of this process, which need not import everything again; a copy cannot use a GPU."""

import os
from contextlib import redirect_stderr, redirect_stdout

import torch

from acl_plugin.cli.main import main


def started(arguments, out, err, before=lambda: None):
    """Start a command; its process number.

    ``out`` and ``err`` are files or descriptors for what the command prints.
    """
    child, status = os.fork(), 1
    if not child:
        try:
            torch.set_num_threads(1)  # others do not survive a fork
            before()
            with open(out, "w") as out, open(err, "w") as err, redirect_stdout(out), redirect_stderr(err):
                status = main(arguments)
        except SystemExit as stop:  # after --help
            status = stop.code
        finally:
            os._exit(status)
    return child


def ended(child):
    """The exit status of what was started."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
