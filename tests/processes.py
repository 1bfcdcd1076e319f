"""Commands in processes of their own, which are forked from one that has imported everything that they need.

The fork has its own environment, folder, output, signals and end; only the imports, most of the time of a short
command, are not its own. ``python -m acl_plugin`` itself is started by tests of its own.
"""

import atexit
import functools
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).parent


class Process:
    """A command that was started."""

    def __init__(self, answers):
        self.answers, self.status = answers, None
        self.pid = int(answers.readline())

    def send_signal(self, number):
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def wait(self):
        """The exit status; minus the number of the signal that ended it."""
        if self.status is None:
            with self.answers:
                self.status = int(self.answers.readline())
        return self.status


@functools.cache
def _server():
    """A socket to the process that forks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)

    def close():
        ours.close()  # which ends it
        process.wait()

    atexit.register(close)
    return ours


def started(
    arguments, out=os.devnull, err=os.devnull, *, script=None, paths=(), folder=None, largest_file=None, few=False,
    environment=(),
):  # fmt: skip
    """Start a command, or a ``script``.

    ``out`` and ``err`` are files or descriptors for what the command prints; the command works in ``folder``, may write
    no file of more than ``largest_file`` bytes, and with ``few`` computes as little as the fixture of this name, in
    processes of its own that are forked as well. It finds modules and distributions in ``paths`` first.
    """
    opened = [
        each if isinstance(each, int) else os.open(each, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for each in (out, err)
    ]
    reader, writer = os.pipe()
    request = {
        "arguments": list(map(str, arguments)),
        "script": script and str(script),
        "paths": list(map(str, paths)),
        "folder": str(folder or Path.cwd()),
        "environment": {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", **dict(environment)},
        "largest_file": largest_file,
        "few": few,
    }
    socket.send_fds(_server(), [json.dumps(request).encode()], [*opened, writer])
    for own in (writer, *(fd for fd, given in zip(opened, (out, err), strict=True) if fd is not given)):
        os.close(own)
    return Process(os.fdopen(reader))


def ended(process):
    """Return the exit status of what was started."""
    return process.wait()


def _serve(channel):
    """Fork for each request; return in the process of a command: its exit status."""
    import kornia  # noqa: F401
    import lightning  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets
    import sklearn.linear_model  # noqa: F401
    import timm  # noqa: F401
    import torch.utils.tensorboard
    import torchattacks  # noqa: F401

    import conftest  # noqa: F401
    from acl_plugin.cli.main import main

    torch.set_num_threads(1)
    while True:
        request, fds, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not request:
            os._exit(0)
        if not os.fork():
            break
        for fd in fds:
            os.close(fd)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    channel.close()
    out, err, answers = fds
    child = os.fork()
    if child:  # waits, and tells how the command ended
        for fd in (out, err):
            os.close(fd)
        os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)
    asked = json.loads(request)
    _prepare(asked, out, err)
    os.write(answers, f"{os.getpid()}\n".encode())  # from here on a signal is the command's
    os.close(answers)
    if asked["script"]:
        runpy.run_path(asked["script"], run_name="__main__")
        return 0
    if asked["few"]:  # a signal that comes too late finds no interpreter that takes its time to end
        os._exit(main())
    return main()


def forked(start, *arguments, **options):
    """Start processes that are forks of this one."""
    return start(*arguments, **options | {"start_method": "fork"})


def _prepare(request, out, err):
    """Become what was asked for."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    for fd in {out, err} - {1, 2}:
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request["few"]:
        from acl_plugin.evaluation import chunks
        from acl_plugin.reporting import figures
        from conftest import shorten

        shorten(setattr)
        chunks.start_processes = functools.partial(forked, chunks.start_processes)
        figures.svg = lambda figure: b"<svg></svg>"
    sys.path[:0] = request["paths"]
    sys.argv = [request["script"] or "-c", *request["arguments"]]


if __name__ == "__main__":
    sys.exit(_serve(socket.socket(fileno=int(sys.argv[1]))))
