"""Export results in RobustBench's format, and models for ``robustbench.load_model``.

``load_model(NAME, dataset, threat_model)`` looks up ``name_dataset_threat`` in lower case. An index in the user's
data folder lists the exported models, which are registered with timm when it is imported.
"""

import hashlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.leaderboard import provenance, submission
from acl_plugin.leaderboard.index import default_name, index_locked, index_path, read_index, timm_name
from acl_plugin.leaderboard.model_info import FIELDS, check_info, local_reason, model_info
from acl_plugin.leaderboard.module_names import is_taken
from acl_plugin.leaderboard.registration import register_with_timm
from acl_plugin.models.encoder import Classifier
from acl_plugin.registry import EXPORTERS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import write_atomic, write_json
from acl_plugin.validation import check_value

NAME = r"[A-Za-z][A-Za-z0-9_-]{,99}"


@EXPORTERS.register("robustbench")
@exclusive
def export(
    run: RunDir,
    *,
    name: str | None = None,
    paper_url: str = "",
    paper_title: str = "",
    authors: str = "",
    venue: str = "Unpublished",
    additional_data: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write RobustBench's files for an evaluated run, and register its model for ``robustbench.load_model``.

    Files of a result that does not qualify for the leaderboard (another dataset, threat model, eps or image size, or
    part of the test images) are written under ``robustbench/local``.

    Args:
        run: run folder with an evaluation.
        name: the model's name on the leaderboard; by default objective and backbone.
        paper_url, paper_title, authors, venue: the paper of the result.
        additional_data: whether training used images beyond the dataset's training images; required only if the run's
            files do not decide it, as for an imported checkpoint.
        overwrite: replace the export of another run under the same name.

    Returns:
        The ``model_info`` JSON file. ``models/DATASET/THREAT/NAME.pt`` contains the weights.

    Raises:
        UsageError: when the run is not evaluated, or another model was evaluated; when the name is invalid or taken;
            or when ``additional_data`` is required, or contradicts the run's files.
    """
    name = default_name(run.read_config()) if name is None else name
    if not re.fullmatch(NAME, name):
        raise _name_error(name, "allowed are up to 100 letters, digits, - and _, starting with a letter", NAME)
    if is_taken(name):
        raise _name_error(name, "its code would be a module of this name, which Python or a library has", NAME)
    evaluation, model = _evaluated(run)
    dataset, threat = evaluation["dataset"], evaluation["threat_model"]
    more, reason = provenance.additional_data(run, dataset, additional_data)
    paper = {"link": paper_url, "name": paper_title, "authors": authors, "venue": venue}
    info = _with_paper(model_info(evaluation, model.spec, more, reason), paper)
    content = submission.state_dict_bytes(model)
    digest = hashlib.sha256(content).hexdigest()
    local = local_reason(evaluation, model.spec)
    place = Path(re.sub(r"[^\w.-]", "_", dataset)) / threat  # hf:NAME may have a slash
    described = run.robustbench_folder / "models" / place / f"{name}.json"
    with index_locked():
        _check_free(timm_name(name, dataset, threat), name, dataset, described, overwrite)
        described.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(described.with_suffix(".pt"), content)
        write_json(described, submission.description(model, name, dataset, threat, f"{name}.pt", digest))
        folder = run.robustbench_folder
        for root in (folder, folder / "local"):  # an earlier export may have used the other one
            (root / "model_info" / place / f"{name}.json").unlink(missing_ok=True)
            shutil.rmtree(root / "submission" / name, ignore_errors=True)
        root = run.robustbench_folder / "local" if local else run.robustbench_folder
        info_file = root / "model_info" / place / f"{name}.json"
        info_file.parent.mkdir(parents=True, exist_ok=True)
        submitted = submission.Submission(run, model, name, info, evaluation, local, reason)
        submission.write(root / "submission" / name, submitted)
        write_json(info_file, info)
        write_json(index_path(), read_index() | {timm_name(name, dataset, threat): str(described.resolve())})
    if "timm.models" in sys.modules:
        register_with_timm(timm_name(name, dataset, threat), described.resolve())
    return info_file


def _evaluated(run: RunDir) -> tuple[dict[str, Any], Classifier]:
    """Return the AutoAttack standard evaluation of a run, and the evaluated classifier."""
    evaluation = read_record(run.require(run.evaluation_file, f"evaluate {run.path}"))
    if evaluation["version"] != "standard":
        raise UsageError(
            f"{run.path} was evaluated with {evaluation['version']}, as AutoAttack standard needs at least 4 classes; "
            f"such a result cannot be exported",
            parameter="run",
            given=str(run.path),
            allowed="a run evaluated with AutoAttack standard",
        )
    model = load_classifier(run.path)
    if weights_hash(model) != evaluation["weights_sha256"]:
        raise UsageError(
            f"{run.evaluation_file} is of another classifier; delete it and run: acl-plugin evaluate {run.path}",
            parameter="run",
            given=str(run.path),
            allowed="a run whose classifier was evaluated",
        )
    return evaluation, model


def _with_paper(info: dict[str, Any], paper: dict[str, str]) -> dict[str, Any]:
    """Return the checked ``model_info`` fields with those of the paper, in RobustBench's order."""
    info = info | paper
    absent = submission.missing(info)
    if absent:
        notes = (f"draft: {', '.join(absent)} missing", info.get("footnote"))
        info["footnote"] = "; ".join(note for note in notes if note)
    info = {field: info[field] for field in FIELDS if field in info}
    check_info(info)
    return info


def _check_free(timms: str, name: str, dataset: str, described: Path, overwrite: bool) -> None:
    """Refuse a name of a RobustBench model, or of another run's export unless it is to be overwritten."""
    check_value("overwrite", overwrite, bool)
    if timms in {timm_name(other, dataset, timms.rsplit("_", 1)[1]) for other in _zoo(dataset)}:
        raise _name_error(name, f"RobustBench has a {dataset} model of this name", "a name of your own")
    holder = Path(read_index().get(timms, described))
    if holder.is_file() and holder.resolve() != described.resolve() and not overwrite:
        what = f"the export {holder} has this name. Choose another one, or pass `overwrite` to take it over"
        raise _name_error(name, what, "a name that no other export has")


def _zoo(dataset: str) -> list[str]:
    """Return the names in RobustBench's model zoo, parsed from its source because the import takes seconds."""
    found = importlib.util.find_spec("robustbench")
    for folder in (found.submodule_search_locations or []) if found else []:
        source = Path(folder) / "model_zoo" / f"{dataset}.py"
        if source.is_file():
            return re.findall(r"\(\s*['\"]([\w-]+)['\"],\s*\{", source.read_text("utf-8"))
    return []


def _name_error(name: str, text: str, allowed: str) -> UsageError:
    return UsageError(f"`name` {name!r}: {text}", parameter="name", given=name, allowed=allowed)
