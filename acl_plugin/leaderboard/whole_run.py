"""Write the script of a submission that repeats the evaluation of its weights, or the whole run."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from acl_plugin import config as configuration
from acl_plugin.config import ProbeConfig, RunConfig
from acl_plugin.leaderboard import provenance
from acl_plugin.models.pretrained import PRETRAINED
from acl_plugin.models.pretrained_teacher import PREFIX, Pretrained
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.growth import GROWN
from acl_plugin.runs.initialization import TEACHERS, replaced
from acl_plugin.runs.records import read_record

LABELS, TEACHER = "pseudo_labels.npz", "teacher"
SHIPPED = {"pseudo_labels": LABELS, "teacher": TEACHER}
"""Objective settings that are paths, and their replacements in a submission."""


def script(run: RunDir, info: dict[str, Any], evaluation: dict[str, Any]) -> tuple[dict[str, bytes], str]:
    """Return the files that ``repeat.sh`` reads, by name, and its text.

    Args:
        run: a probed and evaluated run.
        info: contents of ``model_info``.
        evaluation: contents of ``evaluation.json``.
    """
    config = run.read_config()
    data = ' --data-dir "$data"' if config.data.data_dir is not None else ""
    files, begin = _pretraining(run, "config.yaml", "run", data)
    probed = read_record(run.probe_file) if run.probe_file.is_file() else {}
    e = evaluation
    attack = f"--norm {e['threat_model']} --eps {e['eps']!r} --seed {e['seed']} --limit-test {e['n']}"
    attack += f" --eval-batch-size {e['batch_size']}" if "batch_size" in e else ""
    place = ' "$data"' if data else ""
    lines = [
        "#!/usr/bin/env bash",
        "# bash repeat.sh DATA_DIR        evaluates the weights of this folder again; exit status 1: another result",
        "# bash repeat.sh DATA_DIR OUT    does the whole run again, in the new folder OUT",
        f"# DATA_DIR holds {config.data.data} in torchvision's layout" if data else "# DATA_DIR may be any folder",
        "set -eu",
        'here=$(cd "$(dirname "$0")" && pwd)',
        'data=$(cd "${1:?the folder of the dataset is needed}" && pwd)',
        "if [ $# -lt 2 ]; then",
        f'    exec "${{PYTHON:-python}}" -m acl_plugin.leaderboard.repeat "$here"{place}',
        "fi",
    ]
    if begin is None:
        reason = "; ".join(_elsewhere(run))
        lines += [f"echo {_quoted(f'The whole run cannot be repeated from this folder: {reason}')} >&2", "exit 2"]
        return files, "\n".join(lines) + "\n"
    lines += [
        'mkdir "$2" && cd "$2"',
        *begin,
        f"acl-plugin probe run{data} --seed {probed.get('seed', config.machine.seed)}",
        f"acl-plugin evaluate run{data} {attack}",
        f"echo 'submitted: clean {info['clean_acc']} %, AutoAttack {info['reported']} %'",
    ]
    return files, "\n".join(lines) + "\n"


def _pretraining(run: RunDir, name: str, out: str, data: str) -> tuple[dict[str, bytes], list[str] | None]:
    """Return configuration ``name`` with its files, and the commands; None if the run was not pretrained here."""
    import yaml

    config, lines = run.read_config(), []
    files: dict[str, bytes] = {}
    settings, possible = config.objective.objective_kwargs, not _elsewhere(run)
    if possible and _is_run(settings.get("teacher")):
        files, first = _pretraining(RunDir(settings["teacher"]), f"{TEACHER}.yaml", TEACHER, data)
        lines += first or []
    if possible and settings.get("pseudo_labels"):
        files[LABELS] = Path(settings["pseudo_labels"]).read_bytes()
        lines.append(f'cp "$here/{LABELS}" .')
    settings = {k: _portable(k, v) for k, v in settings.items()}
    shared = configuration.to_dict(_shared(run, config.replace(objective_kwargs=settings)))
    files[name] = yaml.safe_dump(shared, sort_keys=False).encode()
    lines.append(f'acl-plugin pretrain --config "$here/{name}"{data} --out {out}')
    return files, lines if possible else None


def _shared(run: RunDir, config: RunConfig) -> RunConfig:
    """Return the configuration with the probe's later settings and without machine-specific ones."""
    probed = read_record(run.probe_file) if run.probe_file.is_file() else {}
    given = {f.name: probed[f.name] for f in fields(ProbeConfig) if f.name in probed}
    return config.replace(**given | dict.fromkeys(configuration.PATHS), download=False, accelerator="auto")


def _elsewhere(run: RunDir) -> list[str]:
    """Return why the pretraining of a run or of its teachers cannot be repeated from the configuration."""
    config = run.read_config()
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    if config.objective.objective == "imported":
        details = ", ".join(f"{key} {value}" for key, value in config.objective.objective_kwargs.items())
        return [f"the encoder was imported ({details})"]
    if "transferred_from" in record:
        whose = f"of a run on {record['transferred_from']} (objective {config.objective.objective}"
        return [f"the encoder was transferred, {whose}, weights_sha256 {record.get('encoder_sha256')})"]
    reasons = [] if record else [f"{run.pretraining_file.name} is missing"]
    probed = read_record(run.probe_file) if run.probe_file.is_file() else {}
    for name in configuration.ROWS:
        if probed.get(name) is not None:
            reasons.append(f"the {name} of the probe are in a file on the author's machine")
    if GROWN in record:
        reasons.append(f"it was planned for {', '.join(map(str, record[GROWN]))} epochs at first")
    if config.data.unlabeled is not None:
        reasons.append(f"unlabeled images of the folder {config.data.unlabeled.name} on the author's machine")
    if config.encoder.init is not None:
        reasons.append(f"it started from the run {config.encoder.init.name} on the author's machine")
    if config.encoder.pretrained_file is not None:
        reasons.append(f"the pretrained weights in {config.encoder.pretrained_file.name} on the author's machine")
    for objective, setting, value in provenance.settings_of(config):
        named = Pretrained.of(value) if setting == "teacher" else None
        if named is not None and named.file is not None:
            reasons.append(f"the teacher's weights in {named.file.name} on the author's machine")
        path = Path(value) if isinstance(value, str) and value != PRETRAINED and named is None else None
        if path is None:
            continue
        if setting == "teacher" and provenance.of_snapshot(RunDir(path)) is not None:
            reasons.append("the teacher is an encoder that its run kept on the way")
        elif setting == "teacher" and replaced(RunDir(path), record.get(TEACHERS, {}).get(setting)):
            reasons.append(f"the teacher was in {path.name}, where another run is now")
        elif setting == "teacher" and RunDir(path).config_file.is_file():
            reasons += [f"teacher: {reason}" for reason in _elsewhere(RunDir(path))]
        elif setting not in SHIPPED and provenance.is_path(objective, setting, value):
            reasons.append(f"objective_kwargs.{setting} is {path.name} on the author's machine")
        elif setting in SHIPPED and not path.exists():
            reasons.append(f"{setting} {path.name} is not there")
    return reasons


def _portable(setting: str, value: Any) -> Any:
    """Return a setting of an objective without local folders."""
    if isinstance(value, dict):
        return {k: _portable("", v) for k, v in value.items()}
    if not isinstance(value, str) or value == PRETRAINED or value.startswith(PREFIX):
        return value
    return SHIPPED[setting] if setting in SHIPPED else Path(value).name if Path(value).exists() else value


def _is_run(teacher: Any) -> bool:
    """Return whether the setting is the folder of a run, and no pretrained weights."""
    return isinstance(teacher, str) and teacher != PRETRAINED and not teacher.startswith(PREFIX)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
