"""Every option of a run, its default, and what changes with the data set.

The defaults written here are those of the digits; ``PRESETS`` holds what differs elsewhere.
"""

from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from acl_plugin import unused
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError, unknown
from acl_plugin.runtime.paths import user_path
from acl_plugin.validation import Range, check_value, plain


@dataclass(frozen=True)
class DataConfig:
    """Images"""

    data: str = "digits"
    """Data set by name (`acl-plugin list data`)."""
    data_dir: Path | None = None
    """Folder in torchvision's layout, such as the one that holds cifar-10-batches-py."""
    download: bool = False
    """Let torchvision download the data set into --data-dir when it is not there."""
    limit_train: int | None = None
    """Use only N training images, chosen so that the classes keep their shares; the same ones in all runs."""
    limit_test: int | None = None
    """Evaluate on N test images only, chosen in the same way."""
    image_size: int | None = None
    """Side in pixels that every image is brought to; null keeps the data set's own."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, plain(value))
        if isinstance(self.data_dir, str):
            object.__setattr__(self, "data_dir", user_path(self.data_dir, "data_dir"))


@dataclass(frozen=True)
class ThreatConfig:
    """Threat model"""

    norm: Literal["Linf", "L2"] = "Linf"
    """Norm of the perturbation; eps and attack have other defaults for L2."""
    eps: float | str = 0.1
    """Largest perturbation, images in [0, 1]: a number or a fraction such as 8/255."""


@dataclass(frozen=True)
class BackboneConfig:
    """Encoder"""

    backbone: str = "resnet10t"
    """Any timm model by name (`acl-plugin list backbones`)."""
    backbone_kwargs: dict[str, Any] = field(default_factory=lambda: {"stem_width": 8, "channels": [16, 32, 64, 128]})
    """Arguments of timm.create_model."""
    stem: Literal["cifar", "cifar_padding_2", "native"] = "cifar"
    """cifar: stride 1 and no pooling in the first layers (patches of an eighth of the side); cifar_padding_2: the same
    with DeACL's padding; native: as in timm."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Objective and its inner attack"""

    objective: str = "gsa_rsl"
    """Pretraining objective by name (`acl-plugin list objectives`)."""
    objective_kwargs: dict[str, Any] = field(default_factory=dict)
    """The objective's own settings, such as --objective-kwargs.temperature 0.2."""
    attack: str = "PGD"
    """Inner attack: a torchattacks class by name (`acl-plugin list attacks`)."""
    attack_steps: int = 5
    """Steps of the inner attack."""
    attack_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the torchattacks class; its step size is 1.25 eps / steps unless alpha is given."""
    eps_ramp: float = 0.3
    """Share of the training steps over which the inner attack's eps grows linearly to its full value."""


@dataclass(frozen=True)
class TrainingConfig:
    """Pretraining"""

    epochs: int = 32
    """Passes over the training images."""
    batch_size: int = 128
    """Images per optimiser step and device (two views each)."""
    optimizer: Literal["adamw", "sgd", "lars", "lamb", "lion"] = "adamw"
    """timm's optimiser, or LARS as in the published ACL codes; sgd and lars with momentum 0.9."""
    lr: float = 2e-2
    """Peak learning rate; follows a cosine to 0."""
    weight_decay: float = 1e-4
    """Weight decay, as the optimiser defines it."""
    warmup: float = 0.05
    """Share of the training steps over which the learning rate grows linearly."""
    augment: Literal["digits", "simclr"] = "digits"
    """Views: digits (small affine changes), simclr (crop, flip, colour)."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints."""
    keep_every: int = 4
    """Epochs between two copies of the encoder that are kept to be audited; 0 keeps none."""
    knn_every: int = 0
    """While pretraining, log the accuracy of nearest neighbours on training images every N epochs; 0 never."""
    accumulate_grad_batches: int = 1
    """Batches whose gradients are averaged for one optimiser step."""


@dataclass(frozen=True)
class CoresetConfig:
    """Training on part of the images"""

    coreset: Literal["none", "rcs"] = "none"
    """rcs: train on the batches that most lower the divergence between benign and adversarial embeddings."""
    coreset_fraction: float = 0.2
    """Share of the training images to go on with."""
    coreset_warmup: float = 0.1
    """Share of the epochs that train on all images first."""
    coreset_every: int = 20
    """Epochs between two selections."""
    coreset_fidelity: Literal["paper", "released"] = "paper"
    """released: with the slips of the published code (see acl_plugin/training/coreset.py)."""


@dataclass(frozen=True)
class ProbeConfig:
    """Probe: from an encoder to a classifier"""

    probe_protocol: Literal["slf", "slf_exact", "alf", "aff_trades", "aff_pgd", "semi", "dynacl++", "air++"] = "slf"
    """slf: linear head; slf_exact: solved by L-BFGS; alf: on adversarial images; aff_trades, aff_pgd: all weights;
    semi: from few labels; dynacl++, air++: slf after adversarial finetuning on pseudo-labels (LP-AFT)."""
    probe_holdout: float = 0.0
    """Share of the training images that is held out to choose the epoch by; 0 takes the last epoch."""
    label_fraction: float = 0.1
    """semi: share of the labels that is used, such as 0.01 or 0.1."""
    aft_epochs: int = 25
    """Epochs of the adversarial finetuning; the rate falls tenfold after 40 % and 80 % of them."""
    aft_lr: float = 0.1
    """Learning rate of the adversarial finetuning, by SGD with momentum 0.9."""
    aft_fidelity: Literal["paper", "released"] = "paper"
    """released: as the published code of each protocol attacks (see acl_plugin/probing/lpaft.py)."""
    probe_epochs: int = 25
    """Passes over the training images."""
    probe_milestones: list[float] = field(default_factory=lambda: [0.4, 0.8])
    """Shares of the epochs after which the rate falls tenfold."""
    probe_batch_size: int = 128
    """Images per step."""
    probe_lr: float = 0.1
    """Learning rate of SGD with momentum 0.9."""
    probe_weight_decay: float = 2e-4
    """Weight decay of what is trained."""
    probe_augment: Literal["none", "shift", "weak"] = "none"
    """none; shift: crops of the image padded by an eighth of its side; weak: the same, and flips."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation"""

    class_map: dict[str, str] = field(default_factory=dict)
    """Names of the data set's classes that the classifier knows by other names, such as '{"kitty": "cat"}'."""
    eval_batch_size: int | None = None
    """Images attacked at a time; null for as many as fit into the memory, at most 500."""


@dataclass(frozen=True)
class MachineConfig:
    """Machine and randomness"""

    seed: int = 0
    """Seed of everything random."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Lightning's accelerator."""
    devices: int = 1
    """Lightning's number of devices on each node. The loss is that of the joint batch; attacks and batch norms are of
    each device's own."""
    num_nodes: int = 1
    """Nodes, when torchrun or SLURM starts the command on each of them."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "32-true"
    """Lightning's precision; auto: bf16-mixed on a device that gains from it. Attacks underflow in float16."""
    compile: bool = False
    """Let torch.compile make the encoder's kernels for pretraining; worth trying on a GPU."""


@dataclass(frozen=True)
class RunConfig(
    MachineConfig,
    EvaluationConfig,
    ProbeConfig,
    CoresetConfig,
    TrainingConfig,
    ObjectiveConfig,
    BackboneConfig,
    ThreatConfig,
    DataConfig,
):
    """All options of `acl-plugin run`, resolved."""

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.devices * self.num_nodes


GROUPS: tuple[type, ...] = RunConfig.__bases__[::-1]
"""The groups of options, in the order in which they are shown."""


CIFAR: dict[str, Any] = {
    "eps": "8/255",
    "backbone": "resnet18",
    "backbone_kwargs": {},
    "epochs": 100,
    "batch_size": 256,
    "keep_every": 10,
    "lr": 2e-3,
    "augment": "simclr",
    "precision": "auto",
    "probe_augment": "weak",
    "probe_batch_size": 512,
    "probe_lr": 0.01,
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
    "image_folder": CIFAR | {"image_size": 32},
}
"""Options whose default differs from the digits', by data set."""

WHERE_AND_HOW = frozenset(
    {"data_dir", "download", "accelerator", "eval_batch_size", "checkpoint_every", "keep_every", "knn_every"}
)
"""Options that may change between two starts of the same run, as they decide no number of it."""


L2 = {data: {"attack": "PGDL2", "eps": 0.25 if data.startswith("digits") else 0.5} for data in PRESETS}
"""Options whose default differs when the norm is L2, by data set. RobustBench has eps 0.5 for CIFAR; digits have the
same share of what Linf's eps can move: 0.5 / (8/255 sqrt(3072)) of 0.1 sqrt(64), rounded."""
FOLLOWING = {"norm": ("eps", "attack"), "backbone": ("backbone_kwargs",)}
"""Options whose default goes with another option than the data set."""


def preset(data: str = "digits", **options: Any) -> RunConfig:
    """Return the resolved configuration of a run on ``data``, with ``options`` in place of the defaults.

    Raises:
        UsageError: for an unknown data set or option, a value out of range, or an option that is not used.
    """
    config = from_dict({"data": data, **options})
    unused.refuse([vars(config)], vars(usual(config)), unused.RUN)
    return config


def used(data: str = "digits", **options: Any) -> dict[str, Any]:
    """Return those of ``options`` that the choices among them use, to share settings between unlike runs."""
    config = from_dict({"data": data, **options})

    def is_used(name: str) -> bool:
        return all(use.holds(vars(config)) for use in unused.RUN.get(name, ()))

    return {name: value for name, value in options.items() if is_used(name)}


def usual(config: RunConfig) -> RunConfig:
    """Return the defaults that go with the data set, backbone and norm of ``config``."""
    return RunConfig(data=config.data, **defaults(config.data, config.backbone, config.norm))


def defaults(data: str, backbone: str | None = None, norm: str | None = None) -> dict[str, Any]:
    """Return what differs from the general defaults on ``data``, and with another backbone or norm than usual there.

    Raises:
        UsageError: for an unknown data set.
    """
    if not isinstance(data, str) or data not in PRESETS:
        error = unknown("data set", str(data), PRESETS, parameter="data")
        error.given = data
        raise error
    found = dict(PRESETS[data])
    if backbone not in (None, found.get("backbone", RunConfig.backbone)):
        found |= {"backbone_kwargs": {}}
    if norm == "L2":
        found |= L2[data]
    return found


def following(config: RunConfig, **chosen: Any) -> dict[str, Any]:
    """Return the defaults that change with ``chosen`` (``norm`` or ``backbone``), where it differs from ``config``."""
    found = vars(RunConfig(**defaults(config.data, **chosen)))
    changed = [name for name, value in chosen.items() if value != getattr(config, name)]
    return {option: found[option] for name in changed for option in FOLLOWING[name]}


def option_name(name: str) -> str:
    """A field's name as it is typed on the command line."""
    return "--" + name.replace("_", "-")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration in plain YAML types."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Return the configuration that ``to_dict`` gave; options that are missing have their defaults.

    Raises:
        UsageError: for an unknown data set or option, or a value out of range.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{str(values)[:40]!r} is no mapping of options", parameter="config", given=values)
    names = [f.name for f in fields(RunConfig)]
    for option in values:
        if option not in names:
            raise unknown("option", str(option), names)
    data = values.get("data", RunConfig.data)
    config = RunConfig(**defaults(data, values.get("backbone"), values.get("norm")) | values)
    check(config)
    return config


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Return the options in which a run is not the same as the one that is there."""
    a, b = to_dict(one), to_dict(other)
    return [f"`{k}` {a[k]}, there {b[k]}" for k in a if k not in WHERE_AND_HOW and a[k] != b[k]]


RANGES = {
    **dict.fromkeys(
        "epochs attack_steps checkpoint_every devices num_nodes accumulate_grad_batches probe_epochs probe_batch_size "
        "eval_batch_size coreset_every aft_epochs limit_test".split(),
        Range(1),
    ),
    **dict.fromkeys("keep_every knn_every lr aft_lr probe_lr weight_decay probe_weight_decay".split(), Range(0)),
    **dict.fromkeys(
        "eps_ramp warmup coreset_warmup coreset_fraction probe_holdout label_fraction".split(), Range(0, 1)
    ),
    **{"batch_size": Range(2), "limit_train": Range(2), "image_size": Range(8), "seed": Range(0, 2**63 - 1)},
}
"""Of the options that are numbers."""


def check(config: Any) -> None:
    """Refuse values of another type than annotated, out of range, or that do not go together.

    Args:
        config: a ``config.RunConfig``.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    options: type = type(config)
    for name, kind in _annotations(options).items():
        check_value(name, getattr(config, name), kind, RANGES.get(name))
    ThreatModel(config.norm, config.eps)
    falls = config.probe_milestones
    if falls != sorted(falls) or any(share not in Range(0, 1, open=True) for share in falls):
        allowed = f"a rising list, each {Range(0, 1, open=True)}"
        message = f"`probe_milestones` {falls}: allowed is {allowed}"
        raise UsageError(message, parameter="probe_milestones", given=falls, allowed=allowed)
    if config.probe_protocol == "slf_exact" and config.probe_weight_decay == 0:
        message = "`probe_weight_decay` 0: allowed is a number above 0 with `probe_protocol` slf_exact"
        raise UsageError(message, parameter="probe_weight_decay", given=0, allowed="a number above 0")


@cache
def _annotations(options: type) -> dict[str, Any]:
    return get_type_hints(options)
