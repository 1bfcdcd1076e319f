"""Layouts of published checkpoints: names of their weights, and settings that the files do not store."""

from dataclasses import dataclass
from typing import Literal

Rules = tuple[tuple[str, str], ...]
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR: Normalization = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
NONE: Normalization = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Layout:
    """Naming scheme of one family of checkpoints.

    Attributes:
        papers: papers with such checkpoints.
        methods: objectives whose code writes them.
        marks: patterns of keys; a file with matches for all of them has this layout.
        norm_banks: names of the norm banks in the file's order, where bank N is ``bn_list.N``.
        normalization: mean and std that the code applies if the file does not store them; None if the authors' network
            always stores them, so that a file without them is undecided.
        dropped: pattern of keys outside backbone, projector and head.
        renamed: patterns and replacements, in order, from the file's names to timm's.
        stem: stem of the network, unless its first convolution is that for large images.
        projector: its kind, and patterns and replacements from the file's names to ours.
        head: name of a classifier's linear layer, after ``renamed``.
        bottleneck: ``normalization`` of networks with bottleneck blocks, such as ResNet-50, if it differs.
        normalized: whether features are divided by their L2 norm.
        network: prefix of timm's name for a network that differs from timm's, with the same names and shapes.
    """

    papers: str
    methods: tuple[str, ...]
    marks: tuple[str, ...]
    norm_banks: tuple[str, ...]
    normalization: Normalization | None
    dropped: str | None
    renamed: Rules = ()
    stem: Literal["cifar", "cifar_padding_2", "native"] = "cifar"
    projector: tuple[str, Rules] | None = None
    head: str | None = None
    bottleneck: Normalization | None = None
    normalized: bool = False
    network: str = ""

    def normalization_of(self, bottleneck: bool) -> Normalization | None:
        """Return the code's normalization for a file that stores none, with or without bottleneck blocks."""
        return self.bottleneck if bottleneck and self.bottleneck is not None else self.normalization


_DOWNSAMPLE: Rules = ((r"downsample\.conv\.", "downsample.0."), (r"downsample\.bn\.", "downsample.1."))
_THREE_LAYER: tuple[str, Rules] = (
    "three_layer",
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
        projector=("two_layer", ((r"^head\.", ""),)),
        head="fc",
        normalized=True,
        network="gsa_",
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
        projector=_THREE_LAYER,
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
        projector=("bottleneck", ((r"^head_proj\.", ""),)),
        head="fc",
    ),
    "banks": Layout(
        "ACL, ACL-AIR, DynACL-AIR, RCS, DynACL (momentum encoder alone), DynACL++ and AIR++ with two banks",
        ("acl_ds", "acl_air", "dynacl_air", "dynacl"),
        (r"^bn1\.bn_list\.0\.",),
        ("normal", "pgd"),
        None,
        None,
        _DOWNSAMPLE,
        projector=_THREE_LAYER,
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
