"""The options of a run in sections, with the defaults of the digits dataset."""

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
    """Download the dataset into --data-dir with torchvision if it is missing."""
    limit_train: int | None = None
    """Number of training images to use, in the class proportions of all; the same images in all runs."""
    limit_test: int | None = None
    """Number of test images to evaluate on, chosen in the same way."""
    image_size: int | None = None
    """Side in pixels to which all images are resized; null keeps the dataset's own size."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, plain(value))
        if isinstance(self.data_dir, str):
            object.__setattr__(self, "data_dir", user_path(self.data_dir, "data_dir"))


@dataclass(frozen=True)
class ThreatConfig:
    """Threat model"""

    norm: Literal["Linf", "L2"] = "Linf"
    """Norm of the perturbation; L2 has other defaults for eps and attack."""
    eps: float | str = 0.1
    """Maximum norm of the perturbation, for images in [0, 1]: a number or a fraction such as 8/255."""


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
    """Settings of the objective, such as --objective-kwargs.temperature 0.2."""
    attack: str = "PGD"
    """Inner attack: a torchattacks class by name (`acl-plugin list attacks`)."""
    attack_steps: int = 5
    """Number of steps of the inner attack."""
    attack_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the torchattacks class; alpha is the step size, eps / 4 (1.25 eps / steps below 5 steps)."""
    eps_ramp: float = 0.3
    """Fraction of the training steps over which the inner attack's eps grows linearly to its full value."""


@dataclass(frozen=True)
class TrainingConfig:
    """Pretraining"""

    epochs: int = 32
    """Number of pretraining epochs."""
    batch_size: int = 128
    """Images per batch and device (two views each)."""
    optimizer: Literal["adamw", "sgd", "lars", "lamb", "lion"] = "adamw"
    """Optimizer of timm, or LARS as in the published ACL code; sgd and lars use momentum 0.9."""
    lr: float = 2e-2
    """Peak learning rate, with cosine decay to 0."""
    weight_decay: float = 1e-4
    """Weight decay as defined by the optimizer."""
    warmup: float = 0.05
    """Fraction of the training steps over which the learning rate grows linearly."""
    augment: Literal["digits", "simclr"] = "digits"
    """Augmentation of the views: digits (small affine changes), simclr (crop, flip, color)."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    keep_every: int = 4
    """Epochs between copies of the encoder that are kept for audits; 0 keeps none."""
    knn_every: int = 0
    """Epochs between evaluations of nearest-neighbor accuracy on training images, for the log; 0 disables them."""
    accumulate_grad_batches: int = 1
    """Number of batches whose gradients are averaged for one optimizer step."""


@dataclass(frozen=True)
class CoresetConfig:
    """Training on part of the images"""

    coreset: Literal["none", "rcs"] = "none"
    """rcs: train on the batches that most reduce the divergence between benign and adversarial embeddings."""
    coreset_fraction: float = 0.2
    """Fraction of the training images to select."""
    coreset_warmup: float = 0.1
    """Fraction of the epochs that train on all images before the first selection."""
    coreset_every: int = 20
    """Epochs between selections."""
    coreset_fidelity: Literal["paper", "released"] = "paper"
    """released: with the errors of the published code (see acl_plugin/training/coreset.py)."""


@dataclass(frozen=True)
class ProbeConfig:
    """Probe: from an encoder to a classifier"""

    probe_protocol: str = "slf"
    """slf: linear head; slf_exact: the same, solved by L-BFGS; alf: linear head on adversarial images; aff_trades,
    aff_pgd: all weights; semi: few labels; dynacl++, air++: slf after adversarial finetuning on pseudo-labels
    (LP-AFT)."""
    probe_holdout: float = 0.0
    """Fraction of the training images held out to select the epoch; 0 uses the last epoch."""
    label_fraction: float = 0.1
    """Fraction of the labels to use with semi, such as 0.01 or 0.1."""
    aft_epochs: int = 25
    """Number of adversarial finetuning epochs; the learning rate falls tenfold after 40 % and 80 % of them."""
    aft_lr: float = 0.1
    """Learning rate of adversarial finetuning, with SGD and momentum 0.9."""
    aft_fidelity: Literal["paper", "released"] = "paper"
    """released: with the attack of each protocol's published code (see acl_plugin/probing/lpaft.py)."""
    probe_epochs: int = 25
    """Number of probe epochs."""
    probe_milestones: list[float] = field(default_factory=lambda: [0.4, 0.8])
    """Fractions of the epochs after which the learning rate falls tenfold."""
    probe_batch_size: int = 128
    """Images per batch of the probe."""
    probe_lr: float = 0.1
    """Learning rate of the probe, with SGD and momentum 0.9."""
    probe_weight_decay: float = 2e-4
    """Weight decay of the trained weights."""
    probe_augment: Literal["none", "shift", "weak"] = "none"
    """none; shift: crop of the image padded by an eighth of its side; weak: shift and flip."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation"""

    class_map: dict[str, str] = field(default_factory=dict)
    """Mapping from the dataset's class names to the classifier's, where they differ, such as '{"kitty": "cat"}'."""
    eval_batch_size: int | None = None
    """Images per attacked batch; null for as many as fit into memory, at most 500."""


@dataclass(frozen=True)
class MachineConfig:
    """Machine and randomness"""

    seed: int = 0
    """Random seed."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Lightning's accelerator."""
    devices: int = 1
    """Lightning's number of devices per node. The loss uses the joint batch; attacks and batch norms work per
    device."""
    num_nodes: int = 1
    """Number of nodes, when torchrun or SLURM starts the command on each of them."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "32-true"
    """Lightning's precision; auto: bf16-mixed on devices that are faster with it. Attacks underflow in float16."""
    compile: bool = False
    """Compile the encoder with torch.compile for pretraining; recommended to try on a GPU."""


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
    """Resolved options of `acl-plugin run`."""

    @property
    def ranks(self) -> int:
        """Number of processes that train together (the world size)."""
        return self.devices * self.num_nodes


GROUPS: tuple[type, ...] = RunConfig.__bases__[::-1]
"""Groups of options, in display order."""
