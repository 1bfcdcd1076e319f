"""The options of a run in sections, with their defaults, which are those of the digits."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acl_plugin.runtime.paths import user_path
from acl_plugin.validation import plain


@dataclass(frozen=True)
class DataConfig:
    """Images"""

    data: str = "digits"
    """Dataset by name (`acl-plugin list data`)."""
    data_dir: Path | None = None
    """Folder in torchvision's layout, such as the one that holds cifar-10-batches-py."""
    download: bool = False
    """Let torchvision download the dataset into --data-dir when it is not there."""
    limit_train: int | None = None
    """Use only N training images, chosen so that the classes keep their shares; the same ones in all runs."""
    limit_test: int | None = None
    """Evaluate on N test images only, chosen in the same way."""
    image_size: int | None = None
    """Side in pixels that every image is brought to; null keeps the dataset's own."""

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
    """Images per optimizer step and device (two views each)."""
    optimizer: Literal["adamw", "sgd", "lars", "lamb", "lion"] = "adamw"
    """timm's optimizer, or LARS as in the published ACL codes; sgd and lars with momentum 0.9."""
    lr: float = 2e-2
    """Peak learning rate; follows a cosine to 0."""
    weight_decay: float = 1e-4
    """Weight decay, as the optimizer defines it."""
    warmup: float = 0.05
    """Share of the training steps over which the learning rate grows linearly."""
    augment: Literal["digits", "simclr"] = "digits"
    """Views: digits (small affine changes), simclr (crop, flip, color)."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints."""
    keep_every: int = 4
    """Epochs between two copies of the encoder that are kept to be audited; 0 keeps none."""
    knn_every: int = 0
    """While pretraining, log the accuracy of nearest neighbors on training images every N epochs; 0 never."""
    accumulate_grad_batches: int = 1
    """Batches whose gradients are averaged for one optimizer step."""


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

    probe_protocol: str = "slf"
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
    """Names of the dataset's classes that the classifier knows by other names, such as '{"kitty": "cat"}'."""
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
