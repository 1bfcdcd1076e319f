"""A folder with all that a submission to RobustBench consists of.

NAME.json           the model_info file
NAME.safetensors    the weights, with their SHA-256 in NAME.safetensors.sha256
NAME.py             the model in plain PyTorch and timm, registered with timm, for those without this package
model_zoo.py        the entry of RobustBench's model zoo
NEW_MODEL.md        RobustBench's form, filled in
evaluation.json, evaluation.jsonl    the result, and its log by image
repeat.sh           the commands that repeat it
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from acl_plugin import randomness, verdicts
from acl_plugin.backbones import Classifier
from acl_plugin.run_dir import RunDir, write_atomic, write_json

THRESHOLDS = {"cifar10": 0.70, "cifar100": 0.45}
"""Clean accuracy on the first 200 test images that RobustBench's own tests ask for."""


def write(run: RunDir, model: Classifier, name: str, info: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """Write the folder ``robustbench/submission/NAME`` of an evaluated run.

    Args:
        run: with its evaluation.
        model: the classifier that was evaluated.
        name: on the leaderboard.
        info: the contents of ``model_info``.
        evaluation: the contents of ``evaluation.json``.
    """
    from safetensors.torch import save

    folder = run.robustbench / "submission" / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({key: value.contiguous().cpu() for key, value in model.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    write_json(folder / f"{name}.json", info)
    write_atomic(folder / f"{name}.safetensors", weights)
    files = {
        f"{name}.safetensors.sha256": f"{digest}  {name}.safetensors\n",
        f"{name}.py": stub(model, name, evaluation, digest),
        "model_zoo.py": zoo_entry(name),
        "NEW_MODEL.md": form(name, info, evaluation, digest, acceptance(run, evaluation)),
        "repeat.sh": repeat(run, evaluation),
    }
    for file, text in files.items():
        write_atomic(folder / file, text.encode())
    for log in (run.evaluation, run.evaluation_lines):
        if log.is_file():
            shutil.copyfile(log, folder / log.name)
    return folder


def acceptance(run: RunDir, evaluation: dict[str, Any]) -> str:
    """What RobustBench's own test of a new model would find: clean accuracy on the first 200 test images."""
    needed = THRESHOLDS.get(evaluation["dataset"])
    if needed is None:
        return f"none: RobustBench has no test on {evaluation['dataset']}"
    first = verdicts.read(run.evaluation_lines)[:200]
    if not first:
        return f"not run: {run.evaluation_lines.name} is missing"
    found = sum(v.clean for v in first) / len(first)
    near = abs(found - evaluation["clean_accuracy"]) <= 0.05
    passes = "passes" if found > needed and near and len(first) == 200 else "fails"
    return (
        f"{passes}: clean accuracy {found:.3f} on the first {len(first)} of 200 test images; needed are more than "
        f"{needed:.2f}, and at most 0.05 from the reported {evaluation['clean_accuracy']:.3f}"
    )


def stub(model: Classifier, name: str, evaluation: dict[str, Any], digest: str) -> str:
    """Python that rebuilds the model from timm alone, and registers it with timm."""
    spec, network = model.spec, model.backbone
    plain = _plain_timm(network, spec.backbone)
    changes = [f"        {line}" for line in _changes(plain, network)]
    height, width = model.preprocess.size
    antialias = ", antialias=True" if model.preprocess.antialias else ""
    timm_name = re.sub(r"\W", "_", f"{name}_{evaluation['dataset']}_{evaluation['threat_model']}".lower())
    arguments = ", ".join(f"{k}={v!r}" for k, v in _created_with(network).items())
    lines = [
        f'"""{name}: {spec.backbone}, images {spec.shape[0]} x {spec.shape[1]} x {spec.shape[2]} in [0, 1]."""',
        "",
        "import hashlib",
        "from pathlib import Path",
        "",
        "import timm",
        "import torch",
        "import torch.nn.functional as F",
        "from safetensors.torch import load",
        "from timm.models import register_model",
        "from torch import nn",
        "",
        f'WEIGHTS = Path(__file__).with_name("{name}.safetensors")',
        f'SHA256 = "{digest}"',
        "",
        "",
        "class Preprocess(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        f'        self.register_buffer("mean", torch.tensor({list(spec.mean)}).view(-1, 1, 1))',
        f'        self.register_buffer("std", torch.tensor({list(spec.std)}).view(-1, 1, 1))',
        "",
        "    def forward(self, x):",
        f"        if x.shape[-2:] != ({height}, {width}):",
        f'            x = F.interpolate(x, ({height}, {width}), mode="bilinear", align_corners=False{antialias})',
        "        return (x - self.mean) / self.std",
        "",
        "",
        f"class {_class_name(name)}(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        f'        self.backbone = timm.create_model("{spec.backbone}", {arguments})',
        *changes,
        "        self.preprocess = Preprocess()",
        f"        self.head = nn.Linear({model.head.in_features}, {model.head.out_features})",
        "",
        "    def forward(self, x):",
        "        return self.head(self.backbone(self.preprocess(x)))",
        "",
        "",
        "@register_model",
        f"def {timm_name}(pretrained=False, **kwargs):",
        f"    model = {_class_name(name)}()",
        "    content = WEIGHTS.read_bytes()",
        "    assert hashlib.sha256(content).hexdigest() == SHA256",
        "    model.load_state_dict(load(content))",
        "    return model.eval()",
        "",
    ]
    return "\n".join(lines)


def zoo_entry(name: str) -> str:
    """The entry of RobustBench's model zoo."""
    lines = (
        f"# in robustbench/model_zoo/, with {_class_name(name)} from {name}.py, whose forward normalises by itself",
        f"('{name}', {{",
        f"    'model': {_class_name(name)},",
        f"    'gdrive_id': None,  # a release with {name}.safetensors",
        "}),",
    )
    return "\n".join(lines) + "\n"


def form(name: str, info: dict[str, Any], evaluation: dict[str, Any], digest: str, accepted: str) -> str:
    """RobustBench's form for a new model, filled in."""
    robust = info.get("autoattack_acc") or f"{info['reported']} (not for the leaderboard: {info.get('footnote', '')})"
    missing = "" if info["link"] else "\n> Draft: a public paper is needed; export again with --paper-url.\n"
    return f"""# [New Model] {name}
{missing}
## Paper Information
- Paper Title: {info["name"]}
- Paper URL: {info["link"]}
- Paper authors: {info["authors"]}

## Leaderboard Claim(s)
### Model 1
- Architecture: {info["architecture"]}
- Dataset: {info["dataset"]}
- Threat Model: {evaluation["threat_model"]}
- eps: {info["eps"]}
- Clean accuracy: {info["clean_acc"]}
- Robust accuracy: {robust}
- Additional data: {str(info["additional_data"]).lower()}
- Evaluation method: AutoAttack {evaluation["version"]} ({evaluation.get("autoattack", "")}), all of
  {evaluation["n"]} images, seed {evaluation["seed"]}; flags: {"; ".join(evaluation.get("flags", ())) or "none"}
- Checkpoint and code: {name}.safetensors (SHA-256 {digest}) and {name}.py; host them as a release, not on Google Drive

RobustBench's own test of this model: {accepted}.

## Model Zoo
- [ ] I want to add my models to the Model Zoo (check if true)
- [x] I use an architecture that is included among those of timm: {info["architecture"]}; {name}.py has it whole
- [ ] I agree to release my model(s) under MIT license (check if true) OR under a custom license, located here: (put the
  custom license URL here if a custom license is needed)
"""


def repeat(run: RunDir, evaluation: dict[str, Any]) -> str:
    """The commands that repeat the evaluation, and the whole run."""
    eps = f"--eps {evaluation['eps']} --norm {evaluation['threat_model']} --seed {evaluation['seed']}"
    lines = (
        "# on the classifier that was trained, in a copy of the run's folder without its evaluation",
        f"acl-plugin evaluate RUN {eps} --limit-test {evaluation['n']}",
        f"# or from the beginning, with {run.config.name} of the run's folder",
        f"acl-plugin run --config {run.config.name} --out RUN",
    )
    return "\n".join(lines) + "\n"


def _class_name(name: str) -> str:
    return re.sub(r"\W", "", name[0].upper() + name[1:])


def _plain_timm(network: nn.Module, backbone: str) -> nn.Module:
    import timm

    with randomness.private(0):
        return timm.create_model(backbone, **_created_with(network))


def _created_with(network: nn.Module) -> dict[str, Any]:
    arguments = network.created_with
    assert isinstance(arguments, dict)
    return arguments


def _changes(plain: nn.Module, network: nn.Module) -> list[str]:
    """What our stem has in place of timm's, as lines of Python."""
    ours, lines = dict(network.named_modules()), []
    for name, theirs in plain.named_modules():
        own = ours.get(name)
        if isinstance(own, nn.Identity) and not isinstance(theirs, nn.Identity):
            lines.append(f'self.backbone.set_submodule("{name}", nn.Identity())')
        elif isinstance(own, nn.Conv2d) and _geometry(own) != _geometry(theirs):
            geometry = ", ".join(f"{k}={v!r}" for k, v in _geometry(own).items())
            kind = "nn.Conv2d" if type(own) is nn.Conv2d else f"type(self.backbone.{name})"
            lines.append(f'self.backbone.set_submodule("{name}", {kind}({geometry}))')
    return lines


def _geometry(conv: nn.Module) -> dict[str, Any]:
    if not isinstance(conv, nn.Conv2d):
        return {}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {**{n: getattr(conv, n) for n in names}, "bias": conv.bias is not None}
