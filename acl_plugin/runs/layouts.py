"""Layouts of published checkpoints: names of their weights, and settings that the files do not store."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the list of formats needs no PyTorch
    from acl_plugin.models.spec import Stem

Rules = tuple[tuple[str, str], ...]
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR: Normalization = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
PROFEAT_WIDE: Normalization = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
PROFEAT_RESNET: Normalization = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
"""ProFeAT's code normalizes by network, whatever the dataset is."""
NONE: Normalization = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Layout:
    """Naming scheme of one family of checkpoints.

    Attributes:
        papers: papers with such checkpoints.
        methods: objectives whose code writes them.
        marks: patterns of keys; a file with matches for all of them has this layout, unless another clause excludes it.
        norm_banks: names of the norm banks in the file's order, where bank N is ``bn_list.N``.
        normalization: mean and std that the code applies if the file does not store them; None if the authors' network
            always stores them, so that a file without them is undecided.
        dropped: pattern of keys outside backbone, projector and head.
        renamed: patterns and replacements, in order, from the file's names to timm's.
        stem: stem of the network, unless its first convolution is that for large images.
        projector: kinds, and patterns and replacements from the file's names to ours; the first kind with the file's
            names is taken, where ``mlp`` is of any two sizes. A projector of another kind is left out.
        head: name of a classifier's linear layer, after ``renamed``.
        bottleneck: ``normalization`` of networks with bottleneck blocks, such as ResNet-50, if it differs.
        normalized: whether features are divided by their L2 norm.
        network: prefix of timm's name for a network that differs from timm's, with the same names and shapes; ``wrn``
            for a WideResNet, whose depth and width are in the file.
        wide: ``normalization`` of a WideResNet, if it differs.
        absent: pattern that no key matches.
        container: entry of the file that has the weights; any if empty.
    """

    papers: str
    methods: tuple[str, ...]
    marks: tuple[str, ...]
    norm_banks: tuple[str, ...]
    normalization: Normalization | None
    dropped: str | None
    renamed: Rules = ()
    stem: "Stem" = "cifar"
    projector: tuple[tuple[str, ...], Rules] | None = None
    head: str | None = None
    bottleneck: Normalization | None = None
    normalized: bool = False
    network: str = ""
    wide: Normalization | None = None
    absent: str | None = None
    container: str = ""

    def normalization_of(self, keys: Iterable[str]) -> Normalization | None:
        """Return the code's normalization for a file that stores none, by the names of the network's weights."""
        names = list(keys)
        if self.bottleneck is not None and any(re.search(r"^layer1\.0\.conv3\.", name) for name in names):
            return self.bottleneck
        return self.wide if self.wide is not None and is_wide(names) else self.normalization

    def fits(self, keys: Iterable[str], container: str | None) -> bool:
        """Return whether a file with these keys in this container has the layout's marks."""
        names = list(keys)
        found = all(any(re.search(mark, name) for name in names) for mark in self.marks)
        other = self.absent is not None and any(re.search(self.absent, name) for name in names)
        return found and not other and self.container in ("", container)


def is_wide(keys: Iterable[str]) -> bool:
    """Return whether the names are those of a WideResNet for small images."""
    return any(re.search(r"(^|\.)block1\.layer\.", key) for key in keys)


_DOWNSAMPLE: Rules = ((r"downsample\.conv\.", "downsample.0."), (r"downsample\.bn\.", "downsample.1."))
_OF_ACL: tuple[tuple[str, ...], Rules] = (
    ("three_layer", "two_layer_norm"),
    tuple((rf"^fc\.{old}\.", f"{new}.") for old, new in zip("fc1 bn1 fc2 bn2 fc3 bn3".split(), "013467", strict=True)),
)
NORMALIZATIONS = {"none": NONE, "cifar": CIFAR, "imagenet": IMAGENET}
"""Normalizations that can be chosen for a file that stores none."""


def _two_norms(shortcut: int, mark: str | None = None) -> Layout:
    """Return the layout of GSA-RSL, whose blocks have their shortcut in the layers of this number."""
    return Layout(
        "GSA-RSL" + (" (bottleneck blocks)" if mark else ""),
        ("gsa_rsl",),
        (r"^encoder\.bn1\.0\.", *([mark] if mark else [])),
        ("normal", "pgd"),
        None,
        None,
        (
            (r"^encoder\.", ""),
            (rf"\.conv{shortcut}\.", ".downsample.0."),
            (rf"\.bn{shortcut}\.([01])\.", r".downsample.1.bn_list.\1."),
            (r"\b(bn\d)\.([01])\.", r"\1.bn_list.\2."),
        ),
        projector=(("two_layer",), ((r"^head\.", ""),)),
        head="fc",
        normalized=True,
        network="gsa_",
    )


def _profeat(about: str, *marks: str, container: str = "") -> Layout:
    """Return the layout of ProFeAT, whose classifier beside the projector is never trained."""
    return Layout(
        about,
        ("profeat",),
        (r"^backbone\.conv1\.weight$", *marks),
        ("shared",),
        PROFEAT_RESNET,
        r"^classifier\.",
        ((r"^backbone\.", ""),),
        stem="cifar_padding_2",
        projector=(("mlp",), ((r"^projector\.", ""),)),
        head="fc",
        wide=PROFEAT_WIDE,
        absent=r"momentum|^queue|^predictor\.",
        container=container,
    )


LAYOUTS: dict[str, Layout] = {
    "two_norms_bottleneck": _two_norms(4, r"\.conv4\.weight$"),
    "two_norms": _two_norms(3),
    "momentum": Layout(
        "DynACL (whole checkpoint, of which the momentum encoder is taken)",
        ("dynacl",),
        (r"^encoder_q\.", r"^encoder_k\.", r"\.bn_list\.0\."),
        ("normal", "pgd"),
        None,
        r"^encoder_q\.",
        ((r"^encoder_k\.", ""), *_DOWNSAMPLE),
        projector=_OF_ACL,
        head="fc",
    ),
    "clustered": Layout(
        "AdvCL, A-InfoNCE on AdvCL",
        ("advcl", "a_infonce"),
        (r"^fc_0|^head_proj\.", r"\.bn_list\.0\."),
        ("normal", "pgd", "pgd_ce"),
        NONE,
        r"^fc_\d|^head_(ce|pred)\.",
        _DOWNSAMPLE,
        projector=(("bottleneck",), ((r"^head_proj\.", ""),)),
        head="fc",
    ),
    "wide_banks": Layout(
        "RCS on ImageNet-32 (WideResNet, whose first bank is for adversarial images)",
        ("acl_ds",),
        (r"^block1\.layer\.0\.bn1\.bn_list\.0\.", r"\.bn_list\.1\."),
        ("pgd", "normal"),
        NONE,
        None,
        projector=(_OF_ACL[0], tuple((old.replace("^fc", r"^linear"), new) for old, new in _OF_ACL[1])),
        head="linear",
        network="wrn",
    ),
    "wide": Layout(
        "WideResNets of TRADES and RobustBench",
        ("simclr",),
        (r"^block1\.layer\.0\.bn1\.weight$",),
        ("shared",),
        None,
        r"^sub_block1\.",
        head="fc",
        network="wrn",
    ),
    "banks": Layout(
        "ACL, ACL-AIR, DynACL-AIR, RCS, DynACL (momentum encoder alone), DynACL++ and AIR++ with two banks",
        ("acl_ds", "acl_air", "dynacl_air", "dynacl"),
        (r"^bn1\.bn_list\.0\.", r"\.bn_list\.1\."),
        ("normal", "pgd"),
        None,
        None,
        _DOWNSAMPLE,
        projector=_OF_ACL,
        head="fc",
    ),
    "one_bank": Layout(
        "ACL's SimCLR (without --ACL_DS)",
        ("simclr",),
        (r"^bn1\.bn_list\.",),
        ("shared",),
        None,
        None,
        ((r"\.bn_list\.(?!\d)", ".bn_list.0."), *_DOWNSAMPLE),
        projector=_OF_ACL,
        head="fc",
    ),
    "adv_suffix": Layout(
        "ACL (early versions)",
        ("acl_ds",),
        (r"^bn1_adv\.",),
        ("normal", "pgd"),
        None,
        r"^fc\.(?!(weight|bias)$)",
        ((r"\b(bn\d?)\.", r"\1.bn_list.0."), (r"\b(bn\d?)_adv\.", r"\1.bn_list.1."), *_DOWNSAMPLE),
        head="fc",
    ),
    "shortcut": Layout(
        "RoCL, A-InfoNCE on RoCL; fine-tuned AdvCL and A-InfoNCE, whose classifier lies beside the network",
        ("rocl", "a_infonce", "advcl"),
        (r"\.shortcut\.0\.",),
        ("shared",),
        NONE,
        r"^head_(proj|pred)\.",
        ((r"\.shortcut\.", ".downsample."),),
        projector=(("mlp",), ((r"^projector\.", ""),)),
        head="linear",
    ),
    "student": Layout(
        "DeACL (of which the student is taken; its ResNet-18 stores a normalization, its ResNet-50 has none)",
        ("deacl",),
        (r"^backbone\.", r"^momentum_backbone\."),
        ("shared",),
        None,
        r"^(?!backbone\.)",
        ((r"^backbone\.", ""),),
        stem="cifar_padding_2",
        head="fc",
        bottleneck=NONE,
        absent=r"^(momentum_)?projector\.|^(predictor|queue)",
    ),
    "profeat": _profeat("ProFeAT (student)", r"^projector\.0\.weight$", container="model"),
    "profeat_classifier": _profeat("ProFeAT (fine-tuned)", r"^fc\.weight$", r"^backbone\.normalize\."),
    "solo": Layout(
        "SimCLR, BYOL, MoCo, Barlow Twins, VICReg and others of solo-learn (the network that is trained by gradients)",
        ("simclr",),
        (r"^(backbone|encoder)\.", r"^(momentum_)?projector\.|^classifier\."),
        ("shared",),
        None,
        r"^(?!backbone\.|encoder\.|projector\.|classifier\.)",
        ((r"^(backbone|encoder)\.", ""),),
        stem="cifar_padding_2",
        projector=(("mlp",), ((r"^projector\.", ""),)),
        head="classifier",
        absent=r"^(backbone|encoder)\.\d|^classifier_adv\.",
    ),
    "lightly": Layout(
        "methods of lightly on ResNets of torchvision",
        ("simclr",),
        (r"^backbone\.", r"^projection_head\."),
        ("shared",),
        None,
        r"^(?!backbone\.)",
        (
            (r"^backbone\.0\.", "conv1."),
            (r"^backbone\.1\.", "bn1."),
            *((rf"^backbone\.{n + 3}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
            (r"^backbone\.", ""),
        ),
        head="fc",
    ),
    "dino": Layout(
        "DINO (whole checkpoint, of which the teacher is taken)",
        ("simclr",),
        (r"^backbone\.", r"^head\.(mlp|last_layer)\."),
        ("shared",),
        IMAGENET,
        r"^head\.",
        ((r"^backbone\.", ""),),
        stem="native",
        container="teacher",
    ),
    "plain": Layout(
        "DynACL++ and AIR++ with one bank, finetuned ACL, networks of torchvision and timm",
        ("acl_ds", "dynacl", "dynacl_air", "simclr"),
        (r"^conv1\.weight$", r"^layer4\.1\.bn2\.weight$"),
        ("shared",),
        None,
        None,
        head="fc",
    ),
}
"""Layouts by name, in the order of detection."""
