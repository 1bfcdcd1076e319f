"""Implement ``acl-plugin benchmark``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from acl_plugin.cli.parser import PROGRAM, known_options, parse, parser_of
from acl_plugin.config import MachineConfig
from acl_plugin.leaderboard.boards import listed
from acl_plugin.registry import BOARDS
from acl_plugin.runs.folder import RunDir

OF_RUN = ("data_dir", "eval_batch_size", *vars(MachineConfig()))
"""Options whose defaults are those of the run."""


def benchmark(arguments: list[str]) -> None:
    """Run what a board lacks for the encoder of a run folder."""
    parser = parser_of("benchmark")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_argument("--board", type=str, default="robustssl", help="Leaderboard whose cells are run.")
    text = "Target datasets, separated by commas; by default those of the board for the run's data."
    parser.add_argument("--targets", type=str | None, default=None, help=text)
    text = "Probe protocols, separated by commas; by default all of the board: slf,alf,aff_trades."
    parser.add_argument("--protocols", type=str | None, default=None, help=text)
    text = "LP-AFT before the probes, for targets of the pretraining's data: as DynACL++ or AIR++ have it."
    parser.add_argument("--lpaft", type=Literal["none", "dynacl", "air"], default="none", help=text)
    text = "Folder of all targets in torchvision's layout, such as the one that holds stl10_binary."
    parser.add_argument("--data-dir", type=Path | None, default=None, help=text)
    parser.add_argument("--download", type=bool, help="Download targets that are missing there with torchvision.")
    text = "Folder that holds CIFAR-10-C or CIFAR-100-C; without it corruptions are made on the fly."
    parser.add_argument("--corruptions-dir", type=Path | None, default=None, help=text)
    parser.add_argument("--limit-train", type=int | None, default=None, help="Probe on N training images only.")
    parser.add_argument("--limit-test", type=int | None, default=None, help="Evaluate on N test images only.")
    text = "Images per attacked batch; null for as many as fit into memory, at most 500."
    parser.add_argument("--eval-batch-size", type=int | None, default=None, help=text)
    parser.add_class_arguments(MachineConfig, skip={"num_nodes", "compile"})
    parser.add_argument("--overwrite", type=bool, help="Replace cells that are there with other settings.")
    options = parse(parser, arguments, _defaults, {})
    run, board = RunDir(options["run"]), BOARDS.get(options["board"])()
    targets, protocols = listed(options["targets"]), listed(options["protocols"])
    board.cells(run.pretrained_on(), targets, protocols, options["lpaft"])  # find mistakes before PyTorch is imported
    run.require(run.encoder_file, f"pretrain --out {run.path}")

    from acl_plugin.leaderboard import benchmark as cells

    done = cells.benchmark(
        run,
        board.name,
        targets=targets,
        protocols=protocols,
        corruptions_dir=options["corruptions_dir"],
        overwrite=options["overwrite"],
        **known_options(options),
    )
    for cell, results in done:
        print(f"{cell.target.data:12}{cell.title:6}{_accuracies(results)}", flush=True)
    after = "" if options["lpaft"] == "none" else f" --lpaft {options['lpaft']}"
    print(f"results: {run.boards_folder / board.name}; next: {PROGRAM} export {run.path} --format {board.name}{after}")


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the machine and the place of the data as the run has them."""
    options = RunDir(given["run"]).read_config().options()
    return {name: options[name] for name in OF_RUN}


def _accuracies(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the accuracies of a cell in one line."""
    attacked, corrupted = results.get("autoattack"), results.get("corruptions")
    parts = []
    if attacked is not None:
        parts.append(f"clean {100 * attacked['clean_accuracy']:.2f} %")
        parts.append(f"AutoAttack {100 * attacked['robust_accuracy']:.2f} % of {attacked['n']} images")
    if corrupted is not None:
        parts.append(f"corruptions {100 * corrupted['mean']:.2f} %")
    return ", ".join(parts)
