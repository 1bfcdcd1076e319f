"""Write a folder with all files of a RobustBench submission.

NAME.json           the model_info file
NAME.pt             the weights for RobustBench's loader, to be uploaded to Google Drive
NAME.safetensors    the same weights, with their SHA-256 in NAME.safetensors.sha256
NAME.py             the model in plain PyTorch and timm, for use without this package
model_zoo.py        the entry in RobustBench's model zoo, and the target of each file; for leaderboard results
NEW_MODEL.md        RobustBench's form, filled in
evaluation.json, evaluation.jsonl    the result, and its log by image
export.json         the specification of the model, without weights
config.yaml         the configuration of the whole run; with teacher.yaml or pseudo_labels.npz if used
repeat.sh           repeats the evaluation of these weights, and the whole run
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acl_plugin.evaluation.storage import read_verdicts
from acl_plugin.evaluation.verdicts import Verdict
from acl_plugin.leaderboard import weights, whole_run
from acl_plugin.leaderboard.network_code import defined_in
from acl_plugin.leaderboard.stub import class_name, fault, stub
from acl_plugin.models.encoder import Classifier
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import new_folder, torch_bytes, write_atomic, write_json

IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""Number of test images of RobustBench's datasets in this package."""
THRESHOLDS = {"cifar10": 70.0, "cifar100": 45.0, "imagenet": 40.0}
"""Clean accuracy on the first 200 test images that RobustBench's test of a new model requires, in percent."""
TOLERANCE = 0.05
"""Largest difference in that test between ``clean_acc`` and the accuracy on all test images, in percentage points."""


@dataclass(frozen=True)
class Submission:
    """An evaluated run that is to be submitted.

    Attributes:
        run: the run, with its evaluation.
        model: the evaluated classifier.
        name: name on the leaderboard.
        info: contents of ``model_info``.
        evaluation: contents of ``evaluation.json``.
        local: why the result does not qualify for the leaderboard; None if it does.
        data_reason: evidence for ``additional_data``.
    """

    run: RunDir
    model: Classifier
    name: str
    info: dict[str, Any]
    evaluation: dict[str, Any]
    local: str | None
    data_reason: str


def write(folder: Path, s: Submission) -> None:
    """Write a submission to ``folder``; files of an earlier export are removed."""
    from safetensors.torch import save

    run, model, name, evaluation = s.run, s.model, s.name, s.evaluation
    dataset, threat = evaluation["dataset"], evaluation["threat_model"]
    safe, pickled = save(weights.saved(model)), state_dict_bytes(model)
    digest = hashlib.sha256(safe).hexdigest()
    code = stub(model, name, dataset, threat, digest)
    wrong = fault(code, model, name)
    described = description(model, name, dataset, threat, f"{name}.safetensors", digest)
    files = {f"{name}.safetensors": safe, f"{name}.pt": pickled}
    texts = {
        f"{name}.safetensors.sha256": f"{digest}  {name}.safetensors\n",
        "NEW_MODEL.md": form(s, (digest, pickled), wrong),
    }
    if wrong is None:
        texts[f"{name}.py"] = code
    if wrong is None and s.local is None:
        texts["model_zoo.py"] = zoo_entry(name, dataset, threat)
    shipped, texts["repeat.sh"] = whole_run.script(run, s.info, evaluation)
    with new_folder(folder) as part:
        write_json(part / f"{name}.json", s.info)
        write_json(part / "export.json", described)
        for file, content in (files | shipped | {file: text.encode() for file, text in texts.items()}).items():
            write_atomic(part / file, content)
        for log in (run.evaluation_file, run.verdicts_file):
            if log.is_file():
                shutil.copyfile(log, part / log.name)


def description(
    model: Classifier, name: str, dataset: str, threat_model: str, file: str, digest: str
) -> dict[str, Any]:
    """Return the specification for ``leaderboard.load_exported``; ``file`` has its weights, in the same folder."""
    return {
        "name": name,
        "dataset": dataset,
        "threat_model": threat_model,
        "spec": model.spec.to_dict(),
        "weights": file,
        "sha256": digest,
    }


def state_dict_bytes(model: Classifier) -> bytes:
    """Return the weights as ``torch.save`` writes them, for RobustBench's loader."""
    return torch_bytes(weights.for_robustbench(weights.saved(model)))


def acceptance(run: RunDir, evaluation: dict[str, Any], clean_acc: str) -> list[str]:
    """Return the results of RobustBench's two tests of a new model (``tests/test_clean_acc.py``), one line each.

    Args:
        run: the run, with its verdicts.
        evaluation: contents of ``evaluation.json``.
        clean_acc: as in ``model_info``, in percent.
    """
    dataset = evaluation["dataset"]
    if dataset not in THRESHOLDS:
        return [f"none: RobustBench has no test on {dataset}"]
    found = read_verdicts(run.verdicts_file, evaluation.get("n"))
    first, needed, total = [v for v in found if v.index < 200], THRESHOLDS[dataset], IMAGES[dataset]
    quick = f"clean accuracy on the first 200 test images, which must be above {needed:.0f} %: "
    exact = f"clean accuracy on all {total} test images, which must be within {TOLERANCE} percentage points of "
    exact += f"`clean_acc` {clean_acc}: "
    accuracy = _percent(first)
    if len(first) == 200:
        quick += f"{accuracy:.2f} %, {'passes' if accuracy > needed else 'fails'}"
    else:
        quick += f"not known, the evaluation has {len(first)} of them"
    if len(found) == total:
        passes = abs(_percent(found) - float(clean_acc)) <= TOLERANCE
        exact += f"{_percent(found):.2f} %, {'passes' if passes else 'fails'}"
    else:
        exact += f"not known, the evaluation has {len(found)} of them"
    return [quick, exact]


def images_text(evaluation: dict[str, Any]) -> str:
    """Return a phrase for the images of an evaluation, such as ``50 of 10000 test images``."""
    n, total = evaluation["n"], IMAGES.get(evaluation["dataset"])
    if total is None:
        return f"{n} test images"
    if n == total:
        return f"all {total} test images"
    return f"{n} of {total} test images"


def zoo_entry(name: str, dataset: str, threat_model: str) -> str:
    """Return the entry in RobustBench's model zoo, with the target file, dictionary and import."""
    module, zoo = class_name(name).lower(), f"robustbench/model_zoo/{dataset}.py"
    preprocessing = "\n    'preprocessing': 'Res256Crop224'," if dataset == "imagenet" else ""
    return f"""# 1. Copy {name}.py to robustbench/model_zoo/architectures/{module}.py
# 2. In {zoo}, add to the imports:
from robustbench.model_zoo.architectures.{module} import {class_name(name)}

# 3. In {zoo}, add to the OrderedDict `{threat_model.lower()}`:
('{name}', {{
    'model': {class_name(name)},
    'gdrive_id': 'GOOGLE-DRIVE-ID-OF-{name}.pt',{preprocessing}
}}),

# 4. Upload {name}.pt to Google Drive and put its id into the entry. RobustBench's loader takes the file from
#    models/{dataset}/{threat_model}/{name}.pt without a download where it is there already.
# 5. Copy {name}.json to model_info/{dataset}/{threat_model}/{name}.json
"""


FORM = """# [New Model] {name}
{notes}
# Paper Information

- **Paper Title**: {title}
- **Paper URL**: {link}
- **Paper authors**: {authors}

# Leaderboard Claim(s)

## Model 1

- **Architecture**: {architecture}
- **Dataset**: {dataset}
- **Threat Model**: {threat_model}
- **eps**: {eps}
- **Clean accuracy**: {clean}
- **Robust accuracy**: {robust}
- **Additional data**: {additional_data} ({data_reason})
- **Evaluation method**: AutoAttack {version} ({package}) on
  {images}, seed {seed}; flags: {flags}
- **Checkpoint and code**: (insert here the URL of this folder) {digests}; {code}

RobustBench's own tests of a new model (tests/test_clean_acc.py), by the verdicts in evaluation.jsonl:
{accepted}

# Model Zoo:

- [ ] I want to add my models to the Model Zoo (check if true)
- [{within}] I use an architecture that is included among
  those [here](https://github.com/RobustBench/robustbench/tree/master/robustbench/model_zoo/architectures) or in `timm`. If not, I added the link to the architecture implementation so that it can be added.
- [ ] I agree to release my model(s) under MIT license (check if true) **OR** under a custom license, located here: (put the custom license URL here if a custom license is needed. If no URL is specified, we assume that you are fine with MIT)
"""  # noqa: E501 (RobustBench's own lines)
"""RobustBench's form for a new model."""


def form(s: Submission, files: tuple[str, bytes], wrong: str | None) -> str:
    """Return RobustBench's form for a new model, filled in.

    Args:
        s: the submission.
        files: SHA-256 of the safetensors file, and content of ``NAME.pt``.
        wrong: why the folder has no ``NAME.py``; None if it has one.
    """
    model, name, info, evaluation, local = s.model, s.name, s.info, s.evaluation, s.local
    absent = missing(info)
    notes = [f"> Draft: {', '.join(absent)} missing; export again with the options of the paper.\n"] if absent else []
    if local:
        notes.append(
            f"> Not for submission: {local}. {name}.json has no `autoattack_acc`, and RobustBench's tools fail on such "
            f"a file: do not copy it to model_info/.\n"
        )
    elsewhere = defined_in(model.spec.backbone)
    within = " " if wrong or elsewhere else "x"
    digests = f"{name}.safetensors (SHA-256 {files[0]}) and {name}.pt (SHA-256 {_sha256(files[1])})"
    code = f"code in {name}.py" if wrong is None else f"no code in one file ({wrong})"
    code += f"; it needs the module {elsewhere}, which defines {model.spec.backbone}" if elsewhere else ""
    robust = info.get("autoattack_acc") or f"{info['reported']} (not for the leaderboard: {local})"
    accepted = "\n".join(f"- {line}" for line in acceptance(s.run, evaluation, info["clean_acc"]))
    return FORM.format(
        name=name,
        notes="".join(notes),
        title=info["name"],
        link=info["link"],
        authors=info["authors"],
        architecture=info["architecture"],
        dataset=info["dataset"],
        threat_model=evaluation["threat_model"],
        eps=info["eps"],
        clean=info["clean_acc"],
        robust=robust,
        additional_data=str(info["additional_data"]).lower(),
        data_reason=s.data_reason,
        version=evaluation["version"],
        package=evaluation.get("autoattack", ""),
        images=images_text(evaluation),
        seed=evaluation["seed"],
        flags="; ".join(evaluation.get("flags", ())) or "none",
        digests=digests,
        code=code,
        accepted=accepted,
        within=within,
    )


def missing(info: dict[str, Any]) -> list[str]:
    """Return the paper fields that a ``model_info`` lacks."""
    needed = {"link": "paper URL", "name": "paper title", "authors": "authors"}
    return [text for key, text in needed.items() if not info[key]]


def _percent(found: list[Verdict]) -> float:
    """Return the clean accuracy, rounded as in RobustBench's tests."""
    return round(100 * sum(v.clean for v in found) / max(1, len(found)), 2)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
