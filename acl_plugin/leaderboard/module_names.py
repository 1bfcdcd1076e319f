"""Names that an export cannot have, as its code is a Python module of that name."""

import keyword
import sys

IMPORTED = frozenset(
    {"acl_plugin", "huggingface_hub", "numpy", "robustbench", "safetensors", "timm", "torch", "torchvision"}
)
"""Modules that the code of an export, or its loader, imports."""


def is_taken(name: str) -> bool:
    """Return whether a module of this name could not be imported, or would hide another.

    Example:
        >>> from acl_plugin.leaderboard.module_names import is_taken
        >>> is_taken("class"), is_taken("json"), is_taken("my_encoder")
        (True, True, False)
    """
    small = name.lower()
    return keyword.iskeyword(small) or small in IMPORTED or small in sys.stdlib_module_names
