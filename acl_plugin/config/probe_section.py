"""Section of the options of a probe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from acl_plugin.config.sections import Section


@dataclass(frozen=True)
class ProbeConfig(Section):
    """Probe: from an encoder to a classifier"""

    probe_protocol: str = "slf"
    """slf: linear head; slf_exact: the same, solved by L-BFGS; alf, alf_trades: linear head on adversarial images;
    aff_trades, aff_pgd: all weights; aff_autolora: all weights, with a low-rank branch for benign images and a learning
    rate that falls by itself; semi: few labels; gsa_slf, gsa_alf: slf and alf with the cosine and the PGD of GSA-RSL's
    code."""
    lpaft: Literal["none", "dynacl", "air"] = "none"
    """Finetune the encoder adversarially on pseudo-labels first (LP-AFT), as DynACL++ and AIR++ do."""
    probe_holdout: float = 0.0
    """Fraction of the training images held out to select the epoch; 0 uses the last epoch."""
    holdout_indices: Path | None = None
    """NumPy file (.npy) with the numbers of the training images to hold out instead of a fraction."""
    label_fraction: float = 0.1
    """Fraction of the labels to use with semi, such as 0.01 or 0.1."""
    label_indices: Path | None = None
    """NumPy file (.npy) with the numbers of the training images whose labels semi uses, instead of a fraction."""
    label_epochs: int | None = None
    """Epochs of the first stage of semi, on the few labels; null for those of the probe."""
    label_batch_size: int | None = None
    """Images per batch of this stage; null for that of the probe."""
    label_milestones: list[float] | None = None
    """Fractions of its epochs after which the learning rate falls tenfold; null for those of the probe."""
    label_weight_decay: float | None = None
    """Weight decay of this stage; null for that of the probe."""
    aft_epochs: int = 25
    """Number of adversarial finetuning epochs; the learning rate falls tenfold after 40 % and 80 % of them."""
    aft_batch_size: int = 128
    """Images per batch of LP-AFT."""
    lp_lr: float = 0.1
    """Learning rate of the linear probing of LP-AFT."""
    aft_lr: float = 0.1
    """Learning rate of adversarial finetuning, with SGD and momentum 0.9."""
    aft_clusters: int | None = None
    """Number of pseudo-labels; null for 10 (dynacl), or as many as classes (air)."""
    aft_outputs: int | None = None
    """Outputs of LP-AFT's head; null for one per pseudo-label."""
    aft_fidelity: Literal["paper", "released"] = "paper"
    """released: with the attack of the published code of --lpaft (see acl_plugin/probing/lpaft.py)."""
    probe_epochs: int = 25
    """Number of probe epochs."""
    probe_milestones: list[float] = field(default_factory=lambda: [0.4, 0.8])
    """Fractions of the epochs after which the learning rate falls tenfold."""
    probe_batch_size: int = 128
    """Images per batch of the probe."""
    probe_lr: float = 0.1
    """Learning rate of the probe, with SGD and momentum 0.9."""
    probe_nesterov: bool = False
    """Use Nesterov's form of momentum."""
    probe_weight_decay: float = 2e-4
    """Weight decay of the trained weights."""
    probe_head: Literal["zeros", "random"] = "zeros"
    """Initial weights of the linear head."""
    probe_statistics: Literal["frozen", "updated"] = "frozen"
    """updated: the norm layers below a linear head are in training mode, and their running statistics move."""
    probe_attack_steps: int = 10
    """Steps of the attack of alf, alf_trades, aff_trades, aff_pgd, aff_autolora and semi."""
    probe_attack_step: float = 0.25
    """Size of these steps, as a fraction of eps."""
    trades_start: Literal["noise", "image"] = "noise"
    """Start of TRADES' attack: beside the image, or the image itself, where its gradient is zero up to rounding."""
    aff_banks: Literal["two", "one"] = "two"
    """Norm banks of aff_trades and aff_autolora: benign images go through the benign one, or through the same as
    adversarial ones."""
    autolora_rank: int = 8
    """Rank of the branch of aff_autolora."""
    probe_augment: Literal["none", "shift", "weak"] = "none"
    """none; shift: crop of the padded image; weak: shift and flip."""
    probe_padding: int | None = None
    """Pixels around the image before this crop; null for an eighth of its side, 4 as published for all sizes."""
