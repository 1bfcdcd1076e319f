"""Write a classifier as one Python file that depends on PyTorch and timm alone."""

import re
from typing import Any

import torch

from acl_plugin.leaderboard import network_code
from acl_plugin.leaderboard.index import timm_name
from acl_plugin.leaderboard.registration import preprocessing
from acl_plugin.models.copies import copied
from acl_plugin.models.encoder import Classifier
from acl_plugin.runtime import seeding


def stub(model: Classifier, name: str, dataset: str, threat_model: str, digest: str) -> str:
    """Return Python code of the model's class, which registers itself with timm if its weights are in the same folder.

    Args:
        model: the classifier.
        name, dataset, threat_model: name, dataset and threat model of the result.
        digest: SHA-256 of ``NAME.safetensors``.
    """
    spec, network = model.spec, model.backbone
    features = "self.backbone(self.preprocess(x))"
    if spec.normalized:
        features = f"F.normalize({features}, dim=1)"
    lines = [
        f'"""{name}: {spec.backbone}, images {spec.shape[0]} x {spec.shape[1]} x {spec.shape[2]} in [0, 1]."""',
        "",
        "import hashlib",
        "from pathlib import Path",
        "",
        "import timm",
        "import torch",
        "import torch.nn.functional as F",
        *network_code.imports(network, spec.backbone),
        "from timm.models import register_model",
        "from torch import nn",
        "",
        f'WEIGHTS = Path(__file__).with_name("{name}.safetensors")',
        f'SHA256 = "{digest}"',
        "",
        "",
        *_preprocess(model),
        *network_code.classes(network),
        f"class {class_name(name)}(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        f"        self.backbone = {network_code.creation(network, spec.backbone)}",
        *(f"        {line}" for line in network_code.changes(network, spec.backbone, "self.backbone")),
        "        self.preprocess = Preprocess()",
        f"        self.head = nn.Linear({model.head.in_features}, {model.head.out_features})",
        f"        self.default_cfg = {preprocessing(spec.shape, dataset)}",
        "",
        "    def forward(self, x):",
        f"        return self.head({features})",
        "",
        "",
        *_entry(name, timm_name(name, dataset, threat_model)),
    ]
    return "\n".join(lines)


def _preprocess(model: Classifier) -> list[str]:
    """Return the code that resizes and normalizes."""
    spec, (height, width) = model.spec, model.preprocess.size
    antialias = ", antialias=True" if getattr(model.preprocess, "antialias", False) else ""
    return [
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
    ]


def _entry(name: str, entry: str) -> list[str]:
    """Return the code of timm's entry point."""
    return [
        f"def {entry}(pretrained=False, **kwargs):",
        "    from safetensors.torch import load",
        "",
        f"    model = {class_name(name)}()",
        "    content = WEIGHTS.read_bytes()",
        '    assert hashlib.sha256(content).hexdigest() == SHA256, f"{WEIGHTS} is another file"',
        "    model.load_state_dict(load(content))",
        "    return model.eval()",
        "",
        "",
        "if WEIGHTS.is_file():  # robustbench.load_model then finds the model by its name",
        f"    register_model({entry})",
        "",
    ]


def class_name(name: str) -> str:
    """Return the name of the model's class in the stub."""
    return re.sub(r"\W", "", name[0].upper() + name[1:])


def fault(code: str, model: Classifier, name: str) -> str | None:
    """Return why the code of ``stub`` does not reproduce the model on random images; None if it does."""
    parts: dict[str, Any] = {"__file__": "/nowhere/stub.py", "__name__": f"stub_of_{class_name(name)}"}
    try:
        with seeding.isolated_rng(0), torch.no_grad():
            exec(compile(code, parts["__file__"], "exec"), parts)  # code that this module generated
            again = parts[class_name(name)]().eval()
            again.load_state_dict(model.state_dict())
            x = torch.rand(2, *model.spec.shape)
            expected, found = copied(model).cpu().eval()(x), again(x)
    except Exception as error:  # a custom network can fail in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    apart = (found - expected).abs().max().item()
    return None if apart <= 1e-4 * max(1.0, expected.abs().max().item()) else f"its logits differ by {apart:.1e}"
