"""Names in timm's registry, and the modules that registered them."""

import re
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError, unknown

OWN = "own:"
"""Prefix of ``backbone`` for the class of the user's own module instead of a timm name."""


def backbone_names(pattern: str = "") -> list[str]:
    """Return timm's model names that match a wildcard, without exported classifiers."""
    timm = _timm()
    return [name for name in timm.list_models(pattern) if name not in exported_names()]


def _timm() -> Any:
    """Return timm, in whose registry our own networks are as well."""
    import timm

    from acl_plugin.models import gsa_resnet, wide_resnet  # noqa: F401 (importing them registers their networks)

    return timm


def registered_by(name: str) -> str:
    """Return the Python module that registered the model ``name`` with timm; empty for an unknown name."""
    timm = _timm()
    return timm.models.model_entrypoint(name).__module__ if timm.is_model(name) else ""


def check_name(name: str, module: str = "", *, tagged: bool = False) -> None:
    """Check that timm can create the intended network in this process.

    Args:
        name: name of a model, without a tag.
        module: module that registered the model when it was trained; empty if unknown.
        tagged: allow a tag of timm, which names pretrained weights.

    Raises:
        UsageError: for a URL or path, an unknown name, a tag, or a network registered by another module.
    """
    timm = _timm()
    if name.startswith(OWN):
        raise _refused(
            name,
            "is a module of your own, which no file rebuilds, so that no command probes it: pass it, as "
            "load_encoder(run, encoder=...)",
        )
    if re.search(r"[:/\\]", name):
        raise _refused(
            name,
            "is not a name of timm (acl-plugin list backbones); addresses and folders are not taken, and weights of "
            "published checkpoints come by acl-plugin import",
        )
    known = timm.is_model(name) and name.partition(".")[0] not in exported_names()
    here = registered_by(name)
    origin = "the script that trained it" if module == "__main__" else f"the module {module}"
    if module and not known and not _is_timms(module):
        raise _refused(name, f"is unknown to timm in this process: {origin} registered it; import that before")
    if module and known and _is_timms(module) != _is_timms(here):
        raise _refused(name, f"is the network of {here} in this process, but {origin} registered the trained one")
    if not known:
        error = unknown("backbone", name, backbone_names())
        own = "before a network of your own can be built, import the module that registers it (timm.register_model)"
        raise UsageError(f"{error}; {own}", parameter="backbone", given=name, allowed=error.allowed)
    architecture, dot, tag = name.partition(".")
    if dot and not tagged:
        raise _refused(
            name,
            f"has the tag {tag!r}, which names pretrained weights: give `pretrained` to start from them, or "
            f"{architecture!r} for random weights",
            (architecture,),
        )
    if dot and name not in (tagged_names := timm.list_models(f"{architecture}.*", pretrained=True)):
        raise unknown("backbone", name, tagged_names, parameter="backbone")


def _refused(name: str, why: str, allowed: tuple[str, ...] | None = None) -> UsageError:
    return UsageError(f"`backbone` {name!r} {why}", parameter="backbone", given=name, allowed=allowed)


def _is_timms(module: str) -> bool:
    return module.partition(".")[0] == "timm"


REGISTERED: dict[str, Path] = {}
"""Exports that this process has registered with timm: timm name -> file with the model's specification."""


def exported_names() -> frozenset[str]:
    """Return the timm names of exported classifiers, which are not backbones."""
    return frozenset(REGISTERED)
