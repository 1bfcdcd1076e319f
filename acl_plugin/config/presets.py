"""Resolved configurations: defaults that depend on the dataset, the norm and the backbone."""

from collections.abc import Mapping
from typing import Any

from acl_plugin.config import unused
from acl_plugin.config.ranges import check
from acl_plugin.config.run_config import SECTION_OF, SECTIONS, RunConfig, in_sections, with_sections
from acl_plugin.config.sections import DataConfig, EncoderConfig, ObjectiveConfig
from acl_plugin.errors import UsageError, unknown
from acl_plugin.registry import DATASETS

CIFAR: dict[str, Any] = {
    "eps": "8/255",
    "backbone": "resnet18",
    "backbone_kwargs": {},
    "objective_kwargs": {},
    "epochs": 100,
    "batch_size": 256,
    "keep_every": 10,
    "lr": 2e-3,
    "augment": "simclr",
    "precision": "auto",
    "probe_augment": "weak",
    "probe_batch_size": 512,
    "probe_lr": 0.01,
    "aft_batch_size": 512,
    "lp_lr": 0.01,
}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "digits_0_4": {},
    "digits_5_9": {},
    "digits_val": {},
    "cifar10": CIFAR,
    "cifar10_val": CIFAR,
    "cifar100": CIFAR,
    "stl10": CIFAR,
    "stl10_unlabeled": CIFAR | {"image_size": 32},
    "tiny_imagenet": CIFAR,
    "imagenet": CIFAR | {"eps": "4/255", "image_size": 224, "resize": 256, "stem": "native"},
    "image_folder": CIFAR | {"image_size": 32},
}
"""Defaults that differ from those of digits, by dataset. Other datasets have CIFAR's, updated by their own."""

WHERE_AND_HOW = frozenset(
    "data_dir download data_memory workers accelerator eval_batch_size checkpoint_every keep_every knn_every "
    "logger grad_checkpointing".split()
)
"""Options that may change when a run resumes, as they do not affect its results."""


L2 = {data: {"attack": "PGDL2", "eps": 0.25 if data.startswith("digits") else 0.5} for data in PRESETS}
L2["imagenet"]["eps"] = 3.0
"""Defaults that differ for the L2 norm, by dataset. CIFAR has RobustBench's eps of 0.5, ImageNet the 3 of arXiv
2007.08489. The eps of digits is the same fraction of the largest L2 norm within Linf's eps as CIFAR's:
0.5 / (8/255 sqrt(3072)) of 0.1 sqrt(64), rounded."""
FOLLOWING = {"norm": ("eps", "attack"), "backbone": ("backbone_kwargs",), "objective": ("objective_kwargs",)}
"""Options whose default depends on an option other than the dataset."""


def preset(data: str = "digits", **options: Any) -> RunConfig:
    """Return the resolved configuration of a run.

    Args:
        data: name of the dataset.
        options: fields of ``RunConfig`` that replace the defaults.

    Raises:
        UsageError: for an unknown dataset or option, a value out of range, or an option that is not used.
    """
    config = from_dict({"data": data, **options})
    unused.refuse([config.options()], usual(config).options(), unused.RUN)
    return config


def used(data: str = "digits", **options: Any) -> dict[str, Any]:
    """Return the ``options`` that a run with them uses, to share settings between different runs."""
    config = from_dict({"data": data, **options})

    def is_used(name: str) -> bool:
        return all(use.holds(config.options()) for use in unused.RUN.get(name, ()))

    return {name: value for name, value in options.items() if is_used(name)}


def usual(config: RunConfig) -> RunConfig:
    """Return the defaults for the dataset, backbone, norm and objective of ``config``."""
    data, backbone, norm = config.data.data, config.encoder.backbone, config.threat.norm
    given = defaults(data, backbone, norm, config.objective.objective, pretrained=config.encoder.pretrained)
    return in_sections({"data": data} | given)


def defaults(
    data: str,
    backbone: str | None = None,
    norm: str | None = None,
    objective: str | None = None,
    *,
    pretrained: bool = False,
) -> dict[str, Any]:
    """Return the defaults that differ from the general ones for a dataset, backbone, norm, objective and weights.

    Raises:
        UsageError: for an unknown dataset, or a registered one with wrong defaults.
    """
    if isinstance(data, str) and data in PRESETS:
        found = dict(PRESETS[data])
    elif isinstance(data, str) and data.partition(":")[0] in PRESETS:
        name = data.partition(":")[0]
        message = f"`data` {data}: nothing follows the name of this dataset; allowed is {name}"
        raise UsageError(message, parameter="data", given=data, allowed=name)
    elif data in DATASETS:
        found = CIFAR | _own_defaults(data)
    else:
        error = unknown("dataset", str(data), DATASETS.names(), parameter="data")
        error.given = data
        raise error
    if backbone not in (None, found.get("backbone", EncoderConfig.backbone)):
        found |= {"backbone_kwargs": {}}
    if objective not in (None, found.get("objective", ObjectiveConfig.objective)):
        found |= {"objective_kwargs": {}}
    if pretrained:
        found |= {"stem": "native", "backbone_kwargs": {}}
    if norm == "L2":
        found |= L2.get(data, L2["cifar10"])
    return found


def _own_defaults(data: str) -> dict[str, Any]:
    """Return the defaults that a registered dataset declares."""
    own = getattr(DATASETS.get(data), "defaults", {})
    if not isinstance(own, Mapping):
        allowed = "a mapping of options to values"
        message = f"dataset {data!r} is broken: its `defaults` are {own!r:.40}; allowed is {allowed}"
        raise UsageError(message, parameter="data", given=data, allowed=allowed)
    for option in own:
        if option not in SECTION_OF:
            raise unknown(f"option in the `defaults` of dataset {data!r}:", str(option), SECTION_OF, parameter="data")
    return dict(own)


def following(config: RunConfig, **chosen: Any) -> dict[str, Any]:
    """Return the defaults that depend on ``chosen`` (keys of ``FOLLOWING``), where it differs from ``config``."""
    found, before = in_sections(defaults(config.data.data, **chosen)).options(), config.options()
    changed = [name for name, value in chosen.items() if value != before[name]]
    return {option: found[option] for name in changed for option in FOLLOWING[name]}


def option_name(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the configuration as YAML types, in sections."""
    return with_sections(config.options())


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Return the configuration from options by name, in sections or not; missing options have their defaults.

    Raises:
        UsageError: for an unknown dataset or option, or a value out of range.
    """
    options = without_sections(values)
    for option in options:
        if option not in SECTION_OF:
            raise unknown("option", str(option), SECTION_OF)
    data = options.get("data", DataConfig.data)
    chosen = (options.get(name) for name in ("backbone", "norm", "objective"))
    config = in_sections(defaults(data, *chosen, pretrained=options.get("pretrained") is True) | options)
    check(config)
    return config


def without_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a mapping in which some or all of them are grouped in sections.

    Raises:
        UsageError: when ``values`` is not a mapping, an option is in a section that it does not belong to, or given
            twice.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{str(values)[:40]!r} is no mapping of options", parameter="config", given=values)
    options: dict[str, Any] = {}
    for name, value in values.items():
        is_section = name in SECTIONS and isinstance(value, Mapping)
        if name in SECTIONS and name not in SECTION_OF and not is_section:
            if value is None:
                continue  # all its lines are comments
            allowed = "a mapping of its options to values"
            message = f"section {name} is {str(value)[:40]!r}; allowed is {allowed}"
            raise UsageError(message, parameter=name, given=value, allowed=allowed)
        for option, given in value.items() if is_section else [(name, value)]:
            if is_section and SECTION_OF.get(option) != name:
                own = [each for each, section in SECTION_OF.items() if section == name]
                error = unknown(f"option in section {name}:", str(option), own, parameter=name)
                error.given = value
                raise error
            if option in options:
                message = f"`{option}` is given twice, in the section {SECTION_OF[option]} and outside; leave one out"
                raise UsageError(message, parameter=option, given=given, allowed="each option once")
            options[option] = given
    return options


def differences(one: RunConfig, other: RunConfig, *, growing: bool = False) -> list[str]:
    """Return the options in which a configuration differs from that of the existing run, one phrase each.

    Args:
        one, other: the configuration, and that of the existing run.
        growing: more epochs than those of the existing run are no difference.
    """
    a, b = one.options(), other.options()
    if growing and a["epochs"] > b["epochs"]:
        a["epochs"] = b["epochs"]
    return [f"`{k}` {a[k]}, there {b[k]}" for k in a if k not in WHERE_AND_HOW and a[k] != b[k]]
