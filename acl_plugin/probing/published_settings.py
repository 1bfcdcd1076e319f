"""Published probe settings of each method (RobustSSL's "vanilla" evaluation)."""

from typing import Any

from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError

LIKE_ACL = ("acl_a2a", "acl_a2s", "acl_ds", "acl_air", "dynacl", "dynacl_air")
LIKE_ADVCL = ("advcl", "a_infonce", "deacl")
_RATES: dict[str, dict[str, float]] = {
    "acl": {"cifar10": 0.01, "cifar100": 0.05},
    "acl_air": {"cifar10": 0.005, "cifar100": 0.1},
    "dynacl_air": {"cifar10": 0.01, "cifar100": 0.1},
}

GSA: dict[str, Any] = {"probe_epochs": 100, "probe_lr": 0.1, "probe_weight_decay": 1e-4, "probe_batch_size": 512}
"""Settings of the probes of GSA-RSL's code (e574b92, args/linear.py), for any objective."""


def probe_settings(objective: str, data: str, protocol: str) -> dict[str, Any]:
    """Return the probe options that the authors of ``objective`` used, or RobustSSL for them.

    Args:
        objective: name of the objective; those without their own settings use RobustSSL's general ones.
        data: name of the dataset; outside CIFAR, the learning rates are those for CIFAR-10.
        protocol: see ``config.ProbeConfig.probe_protocol``.

    Source: the benchmark code of RobustSSL, and of ACL, DynACL, AIR, AdvCL, DeACL and GSA-RSL.
    """
    if protocol.startswith("gsa_"):
        return GSA | {"probe_augment": "shift" if data == "digits" else "weak"}
    weak = "shift" if data == "digits" else "weak"  # flipped digits are not digits
    settings: dict[str, Any] = {"probe_weight_decay": 2e-4, "probe_augment": weak, "probe_epochs": 25}
    if protocol.startswith("aff"):
        long = objective in ("acl_a2a", "acl_a2s", "acl_ds", "acl_air")
        settings |= {"probe_lr": 0.1, "probe_batch_size": 128}
        return settings | {"probe_epochs": 100 if long else 25, "probe_milestones": [0.4, 0.6] if long else [0.6, 0.8]}
    if objective in LIKE_ADVCL:
        return settings | {"probe_lr": 0.01, "probe_batch_size": 512, "probe_milestones": [0.6, 0.8]}
    if objective not in LIKE_ACL:
        return settings | {"probe_lr": 0.1, "probe_batch_size": 128, "probe_milestones": [0.6, 0.8]}
    rates = _RATES.get(objective, _RATES["acl"])
    if objective == "acl_air" and protocol == "alf":
        rates = rates | {"cifar10": 0.01}
    rate = rates.get(data, rates["cifar10"])
    settings |= {"probe_lr": rate, "probe_batch_size": 512, "probe_milestones": [0.4, 0.8]}
    if data == "cifar10" and (objective, protocol) == ("dynacl_air", "slf"):
        settings |= {"probe_epochs": 5}
    return settings


def probe_settings_of(config: RunConfig, protocol: str) -> dict[str, Any]:
    """Return the published probe options for the method of a run, which may be imported.

    Raises:
        UsageError: for an imported run whose format is that of several methods with different settings.
    """
    name = config.objective.objective
    methods = config.objective.objective_kwargs.get("methods", []) if name == "imported" else [name]
    found = [probe_settings(method, config.data.data, protocol) for method in methods]
    if not found or any(each != found[0] for each in found):
        allowed = ", ".join(methods) or "one of a newer import"
        raise UsageError(
            f"`published`: the method of this imported run is not known, and they differ; import it with `method`: "
            f"{allowed}",
            parameter="published", given=True, allowed=tuple(methods),
        )  # fmt: skip
    return found[0]
