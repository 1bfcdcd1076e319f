"""Encoders beside the one that is trained: a momentum copy of it, and a frozen teacher."""

import copy
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.memory_format import channels_last
from acl_plugin.runs.models import load_encoder


class Momentum(nn.Module):
    """A copy k of an encoder q that follows it: k <- m k + (1 - m) q, parameters only.

    Its norm statistics are those of its own forwards. It takes no gradient.

    Args:
        model: q.
        momentum: m in [0, 1].

    Source: MoCo (arXiv 1911.05722), equation 2.
    """

    def __init__(self, model: Encoder, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.encoder = copy.deepcopy(model).requires_grad_(False)

    def forward(self, x: Tensor, route: str | None = None) -> Tensor:
        """(B, C, H, W) -> (B, P)."""
        return self.encoder(x, route)

    @torch.no_grad()
    def follow(self, model: Encoder) -> None:
        """One update, towards the weights that ``model`` has now."""
        for k, q in zip(self.encoder.parameters(), model.parameters(), strict=True):
            k.lerp_(q, 1 - self.momentum)


class Pair(nn.Module):
    """Two encoders as one: the first half of a batch goes through ``first``, the second through ``second``."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def views(self, a: Tensor, b: Tensor, route: str | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings (B, P) of two views."""
        return self.first(a, route), self.second(b, route)

    def forward(self, x: Tensor, route: str | None = None) -> Tensor:
        """(2B, C, H, W) -> (2B, P)."""
        a, b = x.chunk(2)
        return torch.cat(self.views(a, b, route))


class Teacher(nn.Module):
    """A trained encoder that stays as it is: always in eval mode, and without gradient.

    Its weights are part of a checkpoint, so that a resumed run is complete.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Features: (B, C, H, W) -> (B, D)."""
        return self.encoder.features(x)

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """Embeddings: (B, D) -> (B, P)."""
        return self.encoder.project(features)

    def copy_backbone_to(self, model: Encoder) -> None:
        """Start the backbone of ``model``, in all its banks, from the teacher's weights."""
        _copy(self.encoder.backbone, model.backbone)

    def copy_projector_to(self, model: Encoder) -> None:
        """Give the projector of ``model`` the teacher's weights.

        Raises:
            UsageError: when the teacher has another projector.
        """
        try:
            _copy(self.encoder.projector, model.projector)
        except RuntimeError as error:
            message = "the teacher has no projector of the student's kind; use a SimCLR run"
            raise UsageError(message, parameter="teacher", given=None, allowed="a SimCLR run") from error

    @classmethod
    def of_run(cls, run: Path | str | None, model: Encoder, objective: str) -> "Teacher":
        """The encoder that a run has pretrained, with its projector.

        Args:
            run: the run's folder.
            model: the student, which must be the same network on the same images.
            objective: who asks, for the messages.

        Raises:
            UsageError: when no run is given, it is not finished, or its encoder is another network.
        """
        if run is None:
            raise UsageError(
                f"objective {objective!r} needs a teacher: train one with acl-plugin pretrain --objective simclr "
                f"--out TEACHER, then give --objective-kwargs.teacher TEACHER",
                parameter="teacher", given=None, allowed="the folder of a finished run",
            )  # fmt: skip
        encoder = load_encoder(run)
        other = [
            f"{name} {theirs}, here {ours}"
            for name in ("backbone", "kwargs", "stem", "shape")
            if (theirs := getattr(encoder.spec, name)) != (ours := getattr(model.spec, name))
        ]
        if other:
            message = f"the teacher {run} is another network: {'; '.join(other)}"
            raise UsageError(message, parameter="teacher", given=str(run), allowed="a run of the same network")
        return cls(channels_last(encoder).to(next(model.parameters()).device))


def _copy(source: nn.Module, network: nn.Module) -> None:
    norm_banks.load_banks(network, dict.fromkeys(norm_banks.declared(network), source.state_dict()))
