"""Repeat the evaluation of a submission: ``python -m acl_plugin.leaderboard.repeat FOLDER [DATA_DIR]``."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from acl_plugin.errors import UsageError
from acl_plugin.evaluation.run_folder import evaluate
from acl_plugin.evaluation.storage import read_verdicts
from acl_plugin.leaderboard.model_info import percent
from acl_plugin.leaderboard.registration import load_exported
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import write_model
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import read_json


def repeat(folder: Path, data_dir: Path | None = None, device: torch.device | None = None) -> list[str]:
    """Evaluate the weights of a submission with the same settings, in a scratch folder, and print both results.

    Args:
        folder: ``submission/NAME`` written by ``acl-plugin export``, or a copy of it.
        data_dir: folder of the dataset.
        device: device to compute on; by default the accelerator if there is one.

    Returns:
        The differences; empty if the results are identical.

    Raises:
        UsageError: when files are missing or damaged, or the dataset cannot be read.
    """
    submitted = RunDir(folder)
    config, before = submitted.read_config(), read_record(submitted.evaluation_file)
    if "batch_size" not in before:  # which decides the random numbers of each image
        message = (
            f"{submitted.evaluation_file} has no batch_size: it is of an earlier version, and cannot be repeated; "
        )
        message += "evaluate the run again, and export it"
        raise UsageError(message, parameter="folder", given=str(folder), allowed="an export of this version")
    model, info = load_exported(folder / "export.json"), _info(folder)
    config = config.replace(
        data=before["dataset"], data_dir=data_dir, norm=before["threat_model"], eps=before["eps"],
        seed=before["seed"], limit_test=before["n"], eval_batch_size=before["batch_size"], devices=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(Path(scratch) / "run")
        run.start(config)
        write_model(run.classifier_file, model.spec, model.state_dict())
        after = evaluate(run, device=device)
        others = _other_verdicts(submitted, run)
    results = {"clean_acc": percent(after["clean_accuracy"]), "reported": percent(after["robust_accuracy"])}
    for field, found in results.items():
        print(f"{field}: {info[field]} % submitted, {found} % here")
    print(f"images with another verdict: {others} of {after['n']}")
    same = ("n", "images", "weights_sha256")
    return [
        *(f"{key} is {after.get(key)}, not {before.get(key)}" for key in same if after.get(key) != before.get(key)),
        *(f"{key} is {found}, not {info[key]}" for key, found in results.items() if found != info[key]),
    ]


def main(arguments: list[str]) -> int:
    """Repeat the submission in the folder ``arguments[0]``, with the dataset in ``arguments[1]`` if given.

    Returns:
        0 for the same result, 1 for a different one, 2 for a usage error.
    """
    if len(arguments) not in (1, 2):
        wrong = f"{len(arguments)} arguments; allowed are the folder of a submission, and that of the dataset"
        print(f"repeat: {wrong}: python -m acl_plugin.leaderboard.repeat FOLDER [DATA_DIR]", file=sys.stderr)
        return 2
    try:
        data_dir = Path(arguments[1]) if len(arguments) > 1 else None
        differences = repeat(Path(arguments[0]), data_dir)
    except UsageError as error:
        print(f"repeat: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"differs: {each}" for each in differences) or "the result is the same")
    return 1 if differences else 0


def _info(folder: Path) -> dict[str, Any]:
    name = read_json(folder / "export.json")["name"]
    return dict(read_json(folder / f"{name}.json"))


def _other_verdicts(one: RunDir, other: RunDir) -> int:
    """Return the number of images with a different verdict, clean or robust."""
    found = [read_verdicts(run.verdicts_file, read_json(run.evaluation_file)["n"]) for run in (one, other)]
    theirs, ours = ({v.index: (v.clean, v.robust) for v in verdicts} for verdicts in found)
    return sum(theirs.get(index) != verdict for index, verdict in ours.items())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
