"""Convert network names to RobustBench's spelling."""

import re
from collections.abc import Callable
from typing import Any

from acl_plugin.models.spec import ModelSpec

_SIZES = {"tiny": "T", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "G"}
_SIZE = f"({'|'.join(_SIZES)})"
_SPELLINGS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"(?:wide_?resnet|wrn)_?(\d+)_(\d+)", lambda m: f"WideResNet-{m[1]}-{m[2]}"),
    (r"(?:preact_?resnet_?|resnetv2_)(\d+[a-z]?)", lambda m: f"PreActResNet-{m[1]}"),
    (r"resnet(\d+[a-z]?)", lambda m: f"ResNet-{m[1]}"),
    (r"resnext(\d+)_(\d+x\d+d)", lambda m: f"ResNeXt{m[1]}_{m[2]}"),
    (r"densenet(\d+)", lambda m: f"DenseNet-{m[1]}"),
    (rf"vit_{_SIZE}_patch\d+_\d+", lambda m: f"ViT-{_SIZES[m[1]]}"),
    (rf"deit_{_SIZE}_patch\d+_\d+", lambda m: f"DeiT {m[1].capitalize()}"),
    (rf"swin_{_SIZE}_patch4_window\d+_\d+", lambda m: f"Swin-{_SIZES[m[1]]}"),
    (rf"convnext(v2)?_{_SIZE}", lambda m: f"ConvNeXt{(m[1] or '').upper()}-{_SIZES[m[2]]}"),
    (r"xcit_(small|medium|large)_(\d+)_p\d+_\d+", lambda m: f"XCiT-{m[1][0].upper()}{m[2]}"),
)


def architecture(spec: ModelSpec) -> str:
    """Return a network's name in RobustBench's spelling, such as ``ResNet-18``.

    Non-default arguments follow in parentheses, such as ``ResNet-18 (width 16-128)``. A name without a RobustBench
    spelling stays timm's.
    """
    plain = spec.backbone.split(".")[0]
    found = ((re.fullmatch(pattern, plain), spell) for pattern, spell in _SPELLINGS)
    name = next((spell(match) for match, spell in found if match), f"{plain} of timm")
    changes = ", ".join(_change(*each) for each in spec.kwargs.items())
    return f"{name} ({changes})" if changes else name


def _change(argument: str, value: Any) -> str:
    if argument in ("channels", "dims") and isinstance(value, list | tuple) and value:
        return f"width {value[0]}-{value[-1]}"
    shown = "-".join(map(str, value)) if isinstance(value, list | tuple) else value
    return f"{argument} {shown}"
