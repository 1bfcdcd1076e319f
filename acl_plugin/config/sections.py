"""Sections of the options of a run, with the defaults of the digits dataset."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acl_plugin.runtime.paths import user_path
from acl_plugin.validation import plain

ROWS = ("holdout_indices", "label_indices")
"""Options that are files of numbers of images, whose content decides the result of a probe."""
PATHS = frozenset({"data_dir", "unlabeled", "pretrained_file", "init", *ROWS})
"""Options that are paths, in which a tilde is expanded."""
PRETRAINING = frozenset(
    {
        "unlabeled", "limit_unlabeled", "pretrained", "pretrained_file", "init", "input_size", "input_normalization",
        "lora_rank",
    }
)  # fmt: skip
"""Options of images and encoder that only a pretraining uses."""
TRAINING_ONLY = frozenset({"num_nodes", "compile", "precision", "grad_checkpointing"})
"""Options of the machine that no evaluation uses."""


@dataclass(frozen=True)
class Section:
    """Group of options, whose values are of plain types."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            of_yaml = plain(value)
            is_path = name in PATHS and isinstance(of_yaml, str)
            object.__setattr__(self, name, user_path(of_yaml, name) if is_path else of_yaml)


@dataclass(frozen=True)
class DataConfig(Section):
    """Images"""

    data: str = "digits"
    """Dataset by name (`acl-plugin list data`)."""
    data_dir: Path | None = None
    """Folder in torchvision's layout, such as the one that holds cifar-10-batches-py; for hf:NAME the folder of its
    files, null for the hub or the folder NAME."""
    download: bool = False
    """Download the dataset into --data-dir with torchvision if it is missing."""
    unlabeled: Path | None = None
    """Folder of further images for the pretraining, at any depth and without labels; resized to the dataset's size."""
    limit_train: int | None = None
    """Number of training images to use, in the class proportions of all; the same images in all runs."""
    limit_unlabeled: int | None = None
    """Number of unlabeled images to use."""
    limit_test: int | None = None
    """Number of test images to evaluate on, chosen in the same way."""
    image_size: int | list[int] | None = None
    """Side, or [height, width], in pixels to which all images are resized; null keeps the dataset's own size."""
    channels: Literal[1, 3] | None = None
    """Channels of images in files: 3, or 1 for gray values; null for 1 if all of them are gray, and else 3."""
    image_column: str | None = None
    """Column of a Hugging Face dataset that holds the images; null for the only one of that type."""
    label_column: str | None = None
    """Column that holds the labels; null for the only one with classes."""
    resize: int | None = None
    """Length in pixels of the shorter side before a central crop to --image-size, such as 256 for 224; null resizes to
    the size whatever the aspect ratio. For images in files."""
    data_memory: Literal["auto", "ram", "disk"] = "auto"
    """ram: hold all images in memory; disk: read them from their files when they are used, with the same results; auto:
    ram where they take up to a quarter of the memory."""
    workers: int | None = None
    """Processes that read images from disk; null for one per core, at most 8; 0 reads in the process itself."""
    skip_unreadable: bool = False
    """Leave out files that cannot be read, and list them in images.json, instead of refusing the first."""


@dataclass(frozen=True)
class ThreatConfig(Section):
    """Threat model"""

    norm: Literal["Linf", "L2"] = "Linf"
    """Norm of the perturbation; L2 has other defaults for eps and attack."""
    eps: float | str = 0.1
    """Maximum norm of the perturbation, for images in [0, 1]: a number or a fraction such as 8/255."""


@dataclass(frozen=True)
class EncoderConfig(Section):
    """Encoder"""

    backbone: str = "resnet10t"
    """Any timm model by name (`acl-plugin list backbones`)."""
    backbone_kwargs: dict[str, Any] = field(default_factory=lambda: {"stem_width": 8, "channels": [16, 32, 64, 128]})
    """Arguments of timm.create_model."""
    pretrained: bool = False
    """Start from timm's weights of the backbone, whose name may have a tag (resnet18.a1_in1k). The network keeps its
    stem, and has the normalization and the input size of these weights."""
    pretrained_file: Path | None = None
    """Local file of these weights in timm's names (safetensors, or tensors by torch.save), instead of timm's hub."""
    init: Path | None = None
    """Folder of a run to start from: its encoder with the norm banks, and its projector if the objective has the same.
    The options of the encoder are those of that run."""
    input_size: int | None = None
    """Side in pixels to which the encoder resizes its images; null for that of the pretrained weights, or the images'
    own."""
    input_normalization: Literal["data", "imagenet", "cifar", "none"] = "data"
    """Mean and standard deviation by which the encoder normalizes images: those of the training images, of ImageNet (as
    in ACL, DynACL and AIR) or CIFAR-10 (DeACL), or none (AdvCL, A-InfoNCE, RoCL)."""
    lora_rank: int = 0
    """Train only low-rank matrices of this rank beside the weights of convolutions and linear layers, which stay as at
    the start (LoRA), for fare, deacl and profeat; 0 trains all weights. The matrices are added to the weights of the
    encoder that is kept."""
    stem: Literal["cifar", "cifar_padding_2", "cifar_stride_2", "native"] = "cifar"
    """cifar: stride 1 and no pooling in the first layers (patches of an eighth of the side); cifar_padding_2: the same
    with DeACL's padding; cifar_stride_2: stride 2 and no pooling (patches of a quarter), for a quarter of the cost;
    native: as in timm."""


TWO_SIDED: dict[str, Any] = {
    "base": "acl_a2a",
    "benign": 1.0,
    "global_": 1.0,
    "rho": 0.05,
    "adaptive": False,
    "divergence": "js",
    "layer": "features",
    "attack_divergence": False,
}
"""Settings of gsa_rsl for its two-sided form, the default on digits: both views adversarial, one norm bank, SAM, and a
divergence of features. Without settings, gsa_rsl is the method as its authors released it."""


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Objective and its inner attack"""

    objective: str = "gsa_rsl"
    """Pretraining objective by name (`acl-plugin list objectives`)."""
    objective_kwargs: dict[str, Any] = field(default_factory=TWO_SIDED.copy)
    """Settings of the objective, such as --objective-kwargs.temperature 0.2; '{}' for its own defaults."""
    attack: str = "PGD"
    """Inner attack: a torchattacks class by name (`acl-plugin list attacks`); free: train attack-steps times on each
    batch, and move the adversarial views by the gradient that trains the weights."""
    attack_steps: int = 5
    """Number of steps of the inner attack."""
    attack_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the torchattacks class; alpha is the step size, eps / 4 (1.25 eps / steps below 5 steps)."""
    eps_ramp: float = 0.3
    """Fraction of the training steps over which the inner attack's eps grows linearly to its full value."""


@dataclass(frozen=True)
class TrainingConfig(Section):
    """Pretraining"""

    epochs: int = 32
    """Number of pretraining epochs; 0 keeps the initial encoder."""
    batch_size: int = 128
    """Images per batch and device (two views each)."""
    optimizer: str = "adamw"
    """Any optimizer of timm by name (adamw, lamb, lion, nadamw, ...; momentum is SGD with momentum 0.9, and sgd has
    Nesterov's form of it), or lars as in the published ACL code, with momentum 0.9."""
    lr: float = 2e-2
    """Peak learning rate, with cosine decay to 0."""
    weight_decay: float = 1e-4
    """Weight decay as defined by the optimizer."""
    clip_grad_norm: float = 0.0
    """Largest L2 norm of the gradient of all weights in an optimizer step; 0 does not clip."""
    warmup: float = 0.05
    """Fraction of the training steps over which the learning rate grows linearly."""
    schedule: Literal[
        "cosine", "cosine_by_epoch", "step", "multistep", "poly", "tanh",
        "acl", "advcl", "deacl", "dynacl", "gsa_rsl", "rocl",
    ] = "cosine"  # fmt: skip
    """Learning rate after the warm-up: cosine, by step; cosine_by_epoch: from 1e-8 in the warm-up to the cosine of all
    epochs, which changes with each epoch; step to tanh: as in timm, by step; the others: warm-up and cosine as in the
    code of that method (acl: also AIR and RCS; advcl: also A-InfoNCE and ProFeAT)."""
    schedule_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of timm's schedules, such as --schedule-kwargs.decay_milestones '[60, 80]' in epochs."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls with each layer (timm's groups) from the output to the input."""
    ema_decay: float = 0.0
    """Decay per optimizer step of a moving average of the weights, which is kept as the encoder; 0 keeps the last."""
    augment: Literal["digits", "simclr", "autoaugment"] = "digits"
    """Augmentation of the strong views: digits (small affine changes), simclr (crop, flip, color), autoaugment
    (AutoAugment's policy for CIFAR-10, then the weak view)."""
    crop_scale: float = 0.1
    """Smallest fraction of the area in the crops of simclr; 0.2 in AdvCL and GSA-RSL, 0.08 in RoCL."""
    crop_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How simclr enlarges its crops: bicubic in ACL, bilinear in DynACL, AdvCL and RoCL."""
    color_first: bool = False
    """Change colors before flip and crop in simclr, as in RoCL."""
    blur: float = 0.0
    """Probability of a Gaussian blur in simclr; 0.5 in GSA-RSL."""
    weak_padding: int | None = None
    """Pixels around the image before the crop of weak views; null for an eighth of its side, 4 as published for all
    sizes."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    keep_every: int = 4
    """Epochs between copies of the encoder that are kept for audits; 0 keeps none."""
    knn_every: int = 0
    """Epochs between evaluations of nearest-neighbor accuracy on training images, for the log; 0 disables them."""
    accumulate_grad_batches: int = 1
    """Number of batches whose gradients are averaged for one optimizer step."""
    logger: Literal["none", "wandb", "mlflow"] = "none"
    """A service that logs the run, beside metrics.csv and TensorBoard."""


@dataclass(frozen=True)
class CoresetConfig(Section):
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
class EvaluationConfig(Section):
    """Evaluation"""

    class_map: dict[str, str] = field(default_factory=dict)
    """Mapping from the dataset's class names to the classifier's, where they differ, such as '{"kitty": "cat"}'."""
    eval_batch_size: int | None = None
    """Images per attacked batch; null for as many as fit into memory, at most 500."""


@dataclass(frozen=True)
class MachineConfig(Section):
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
    """Lightning's precision; auto: bf16-mixed on devices that are faster with it. Attacks underflow in float16; a probe
    has 32-true for 64-true."""
    compile: bool = False
    """Compile the encoder with torch.compile for pretraining; recommended to try on a GPU."""
    grad_checkpointing: bool = False
    """Compute the activations within the network's blocks again in the backward pass: less memory, more time."""

    @property
    def ranks(self) -> int:
        """Number of processes that train together (the world size)."""
        return self.devices * self.num_nodes
