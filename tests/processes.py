"""Commands in processes of their own."""

import os
import subprocess
import sys

from conftest import ROOT


def started(arguments, out, err, before=None):
    """Start a command.

    ``out`` and ``err`` are files or descriptors for what the command prints; ``before`` is called in the new process.
    """
    streams = [each if isinstance(each, int) else open(each, "w") for each in (out, err)]  # noqa: SIM115
    command = [sys.executable, "-c", "import sys; from acl_plugin.cli.main import main; sys.exit(main())", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=streams[0], stderr=streams[1], preexec_fn=before, env=environment)


def ended(process):
    """Return the exit status of what was started."""
    return process.wait()
