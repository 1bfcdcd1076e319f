"""Collective operations of a run on several devices; without effect on one device."""

import ast
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from acl_plugin.errors import UsageError


def ranks() -> int:
    """Return the number of processes that train together (the world size)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """Return the samples of all R ranks, in rank order, with gradient: (B, ...) -> (R B, ...).

    If each rank computes a loss from the gathered samples, the gradients averaged over the ranks equal those of one
    process with all samples.

    Args:
        rows: (B, ...), with the same shape on every rank.
    """
    return rows if ranks() == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Average each tensor over all ranks, in place."""
    if ranks() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # gradients of the losses of all ranks for every sample
        return total.chunk(ranks())[dist.get_rank()]


SET_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Variables that Lightning sets in a process, ``LOCAL_RANK`` only if that starts the others."""

_others_ended = False
"""Whether the processes that a launcher started with this one have trained, and ended."""


@contextlib.contextmanager
def temporary_group() -> Iterator[None]:
    """Remove the process group of a training inside the context, and its variables.

    Lightning leaves both, and the next training in this process would wait for processes that have ended.
    """
    global _others_ended
    before = {name: os.environ.get(name) for name in SET_BY_LIGHTNING}
    outer = ranks()
    yield
    if ranks() > outer:
        dist.destroy_process_group()
        started_here = before["LOCAL_RANK"] is None and "LOCAL_RANK" in os.environ  # SLURM sets none
        _others_ended = not started_here
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR")
"""Variables, one of which a launcher of several nodes sets."""


def require_others(devices: int) -> None:
    """Check that a launcher started as many processes as are to train together, and that they have not ended.

    Raises:
        UsageError: with a remedy, when they are more or fewer, or ended after an earlier training.
    """
    started = launched()
    if devices > 1 and _by_launcher() and started != devices:
        message = (
            f"`devices` {devices} on all nodes: the launcher started {started} process(es), of which each trains on "
            f"one; start {devices}, as by torchrun --nproc-per-node or srun --ntasks-per-node, or set `devices`"
        )
        raise UsageError(message, parameter="devices", given=devices, allowed=started)
    if devices > 1 and _others_ended:
        message = (
            f"`devices` {devices}: the other processes that the launcher started ended after the first pretraining; "
            f"start one script for each"
        )
        raise UsageError(message, parameter="devices", given=devices, allowed=1)


def continue_alone(ranks: int) -> None:
    """End a process that a launcher has started beside the first one of a training, which does alone what follows."""
    global _others_ended
    if ranks > 1 and _by_launcher():
        if not is_first_of(ranks):
            raise SystemExit(0)
        _others_ended = True


def _by_launcher() -> bool:
    """Return whether torchrun or SLURM has started this process; Lightning's own processes run the script again."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def require_launcher(nodes: int) -> None:
    """Check that the processes of several nodes can meet.

    Raises:
        UsageError: with a remedy, when no launcher has started this process.
    """
    if nodes > 1 and not any(os.environ.get(name) for name in LAUNCHED):
        message = (
            f"`num_nodes` {nodes}: this process would wait for the others without end, as no launcher has started it; "
            f"start the command on every node by torchrun or SLURM"
        )
        raise UsageError(message, parameter="num_nodes", given=nodes, allowed=1)


def launched() -> int:
    """Return the number of processes that a launcher has started together, by its variables; 1 without any."""
    sizes = [os.environ.get(name) or "1" for name in ("WORLD_SIZE", "SLURM_NTASKS")]
    return max(int(size) if size.isdecimal() else 1 for size in sizes)


def is_first_of(ranks: int) -> bool:
    """Return whether this process is the only one of a training, or the first of those that a launcher has started.

    Args:
        ranks: number of processes that train together; variables that a launcher left do not make one process a part.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return ranks == 1 or all((os.environ.get(name) or "0") == "0" for name in names)


@contextlib.contextmanager
def known_to_lightning(ranks: int) -> Iterator[None]:
    """Let the loggers of a training in one process write, which Lightning stops by the variables that launchers leave.

    Args:
        ranks: number of processes that train together; of several, Lightning knows the first.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    here: Any = rank_zero_only  # an attribute of the function
    before = here.rank
    if ranks == 1:
        here.rank = 0
    try:
        yield
    finally:
        if ranks == 1:
            here.rank = before


def require_script(devices: int, guarded: bool = False) -> None:
    """Check that processes for several devices can be started; each of them runs the main script again.

    Args:
        devices: number of processes to start.
        guarded: the processes also import the main script, which must not start the work a second time.

    Raises:
        UsageError: with a remedy, when there is no script to run again, or it has no main guard.
    """
    main = sys.modules["__main__"]
    if devices == 1 or getattr(main, "__spec__", None) is not None:  # python -m
        return
    file = getattr(main, "__file__", None)
    if guarded and file is None:  # a notebook and python -c have no script to import
        return
    path = Path(file or "")
    started = "LOCAL_RANK" in os.environ and not guarded  # by a launcher
    if not path.is_file() and not started:
        where = "an interactive session or a notebook"
    elif guarded and path.is_file() and not _is_guarded(path):
        where = f"{path}, whose call is not under `if __name__ == '__main__':`"
    else:
        return
    todo = "put the call under `if __name__ == '__main__':` in a script, use the command line, or set `devices` to 1"
    message = f"`devices` {devices}: other processes cannot be started from {where}; {todo}"
    raise UsageError(message, parameter="devices", given=devices, allowed=(1,))


def _is_guarded(path: Path) -> bool:
    """Return whether the running line of the main script is inside an ``if`` statement on ``__name__``."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals is not vars(sys.modules["__main__"]):
        frame = frame.f_back
    while frame.f_back is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    if frame.f_code.co_name != "<module>" or not path.samefile(frame.f_code.co_filename):
        return True  # not called from the main script: unknown
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # not a Python script
        return True
    conditions = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
    return any(node.lineno <= frame.f_lineno <= (node.end_lineno or 0) for node in conditions)
