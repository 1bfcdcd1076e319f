"""Run the cells of a board: probe a run's encoder by each protocol on each target, and evaluate the classifiers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from acl_plugin.config import RunConfig, check
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError, as_flags
from acl_plugin.evaluation import corruption_files
from acl_plugin.leaderboard.boards import Board, Cell
from acl_plugin.leaderboard.cell_folders import Source, config_of, settle
from acl_plugin.probing.protocols import probe
from acl_plugin.registry import BOARDS, SUITES
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked
from acl_plugin.runs.transfer import require_shape, transfer
from acl_plugin.runtime.distributed import require_script
from acl_plugin.validation import check_value

logger = logging.getLogger(__name__)

OF_EVALUATION = ("limit_test", "devices", "eval_batch_size")
"""Options that only the evaluations of a cell have."""
Plan = list[tuple[Cell, RunConfig]]


def benchmark(
    run: RunDir,
    board: str = "robustssl",
    *,
    targets: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    lpaft: str = "none",
    corruptions_dir: Path | None = None,
    overwrite: bool = False,
    device: torch.device | str | None = None,
    **options: Any,
) -> Iterator[tuple[Cell, dict[str, dict[str, Any]]]]:
    """Run the cells of a board that are missing or incomplete, each in its own run folder.

    Everything is checked before the first cell begins. An interrupted cell resumes; one that is complete with the same
    settings is kept.

    Args:
        run: run folder with an encoder.
        board: name of the board.
        targets: names of target datasets; None for those of the leaderboard whose data are there.
        protocols: names of protocols; None for all.
        lpaft: LP-AFT before the probes, as DynACL++ (``dynacl``) and AIR++ (``air``) have it.
        corruptions_dir: contains CIFAR-10-C or CIFAR-100-C; None to generate corruptions on the fly.
        overwrite: replace what is there with other settings.
        device: device to compute on; None for that of ``accelerator``.
        options: fields of ``RunConfig`` for data and machine, such as ``data_dir``, ``limit_test`` or ``devices``.

    Yields:
        Each complete cell, with the results of its evaluations by name.

    Raises:
        UsageError: for an unknown board, target or protocol, a run without an encoder, missing data, or a cell that is
            there with other settings.
    """
    check_value("overwrite", overwrite, bool)
    found: Board = BOARDS.get(board)()
    config = run.read_config()
    accelerator = options.get("accelerator", config.machine.accelerator)
    _, device = run.resolved(config.replace(accelerator=accelerator), device)
    source = Source.of(run)
    of_evaluation = {name: options.pop(name) for name in OF_EVALUATION if name in options}
    require_script(of_evaluation.get("devices", 1), guarded=True)
    cells = found.cells(run.pretrained_on(), targets, protocols, lpaft)
    plan = [(cell, config_of(source, found, cell, options)) for cell in cells]
    plan = _with_data(source, plan, of_evaluation, corruptions_dir, chosen=targets is not None)
    with locked(run.path):
        for cell, config in plan:
            settle(source, cell.folder(run, found.name), config, overwrite=overwrite)
        for cell, config in plan:
            folder = cell.folder(run, found.name)
            transfer(run, folder, config)
            _replacing(partial(probe, folder, config, device), overwrite)
            evaluated = config.replace(**of_evaluation)
            yield (
                cell,
                {
                    name: _replacing(_suite(name, folder, evaluated, device, corruptions_dir), overwrite)
                    for name in cell.target.evaluations
                },
            )


def _with_data(
    source: Source, plan: Plan, of_evaluation: dict[str, Any], corruptions_dir: Path | None, *, chosen: bool
) -> Plan:
    """Return the cells whose data are there, after checking them.

    Targets of the board are left out with a warning when their data are missing; those that the user chose are not.
    """
    used = corruptions_dir is None or any("corruptions" in cell.target.evaluations for cell, _ in plan)
    if not used:
        message = f"`corruptions_dir` {corruptions_dir} is not used: no target has corruptions"
        raise UsageError(message, parameter="corruptions_dir", given=str(corruptions_dir), allowed=None)
    missing: dict[str, UsageError] = {}
    for cell, config in {cell.target.data: (cell, config) for cell, config in plan}.values():
        evaluated = config.replace(**of_evaluation)
        check(evaluated)
        try:
            data = datasets.load(evaluated.data)
        except UsageError as error:
            if chosen or error.parameter != "data_dir":
                raise
            missing[cell.target.data] = error
            continue
        data.require_labels("a probe")
        require_shape(source.run, source.encoder.spec.shape, data)
        if "corruptions" in cell.target.evaluations:
            corruption_files.corrupted(data, data.test, corruptions_dir, config.machine.seed)
    there = [(cell, config) for cell, config in plan if cell.target.data not in missing]
    if not there:
        raise next(iter(missing.values()))
    if missing:
        reasons = "; ".join(f"{name} ({error})" for name, error in missing.items())
        logger.warning(as_flags(f"left out, as the data are missing: {reasons}"))
    return there


def _suite(
    name: str, folder: RunDir, config: RunConfig, device: torch.device | str, corruptions_dir: Path | None
) -> Callable[..., Any]:
    """Return the call of a suite that has only ``overwrite`` left."""
    suite = SUITES.get(name)
    own = {"corruptions_dir": corruptions_dir} if "corruptions_dir" in signature(suite).parameters else {}
    return partial(suite, folder, config, device, **own)


def _replacing(stage: Callable[..., Any], overwrite: bool) -> Any:
    """Run a stage, which resumes or keeps a result of the same settings; replace one of others with ``overwrite``."""
    try:
        return stage(overwrite=False)
    except UsageError as error:
        if not overwrite or error.parameter != "overwrite":
            raise
        return stage(overwrite=True)
