"""Additional encoders of an objective: a momentum copy, and a frozen teacher."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.copies import copied
from acl_plugin.models.memory_format import channels_last
from acl_plugin.models.protocol import EncoderProtocol, Network, require_encoder

logger = logging.getLogger(__name__)
UNINITIALIZED = "to train a student of another network, give initialize false (--objective-kwargs.initialize false)"


class Momentum(nn.Module):
    """Momentum copy k of an encoder q: k <- m k + (1 - m) q, parameters only.

    Its norm statistics come from its own forwards. It receives no gradient.

    Args:
        model: the encoder q.
        momentum: m, in [0, 1].

    Source: MoCo (arXiv 1911.05722), equation 2.
    """

    def __init__(self, model: EncoderProtocol, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.aim: list[Tensor] | None = None
        network = copied(cast(nn.Module, model))
        self.encoder = cast(EncoderProtocol, network.requires_grad_(False))

    def forward(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return the embeddings (B, P) of images (B, C, H, W)."""
        return self.encoder(x, norm_bank)

    @torch.no_grad()
    def follow(self, model: EncoderProtocol) -> None:
        """Update the copy once towards the current weights of ``model``; within ``held``, move it where it was."""
        if self.aim is not None:
            for k, aim in zip(self.encoder.parameters(), self.aim, strict=True):
                k.copy_(aim)
            return
        for k, q in zip(self.encoder.parameters(), model.parameters(), strict=True):
            k.lerp_(q, 1 - self.momentum)

    def renew(self) -> None:
        """Give the copy new tensors of the same values, as a backward pass through it still needs the present ones."""
        new: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.encoder.modules():
            for name, k in module._parameters.items():
                if k is not None:
                    module._parameters[name] = new.setdefault(k, nn.Parameter(k.clone(), requires_grad=False))


@contextmanager
def held(objective: nn.Module, when: bool = True) -> Iterator[None]:
    """Let momentum copies of an objective follow to where they are now: they move once per optimizer step.

    It is for a second pass of a step, and for all batches but the first whose gradients a step accumulates. Unless
    ``when``, it has no effect.
    """
    copies = [each for each in objective.modules() if when and isinstance(each, Momentum)]
    for each in copies:
        each.aim = [p.detach().clone() for p in each.encoder.parameters()]
    try:
        yield
    finally:
        for each in copies:
            each.aim = None


@contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """Restore the training or eval mode of each submodule on exit, so that no step depends on those before it."""
    modes = [(each, each.training) for each in module.modules() if hasattr(each, "training")]
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


class Pair(nn.Module):
    """Two encoders as one module: the first half of a batch uses ``first``, the second half ``second``."""

    def __init__(self, first: Network, second: Network) -> None:
        super().__init__()
        self.first, self.second = first, second

    def views(self, a: Tensor, b: Tensor, norm_bank: str | None = None) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, P) of two views."""
        return self.first(a, norm_bank), self.second(b, norm_bank)

    def forward(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return the embeddings (2B, P) of images (2B, C, H, W)."""
        a, b = x.chunk(2)
        return torch.cat(self.views(a, b, norm_bank))


class Teacher(nn.Module):
    """Frozen copy of a trained encoder, always in eval mode and without gradient.

    It uses the first norm bank of the encoder. Checkpoints contain its weights, so that a run can resume without a
    file.

    Args:
        encoder: trained encoder with projector, such as ``acl_plugin.load_encoder(run)``. It is copied, not changed.

    Raises:
        UsageError: if it is not an encoder, such as a path.
    """

    def __init__(self, encoder: EncoderProtocol) -> None:
        super().__init__()
        network = copied(cast(nn.Module, require_encoder(encoder, "teacher")))
        self.encoder = cast(EncoderProtocol, network.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, C, H, W)."""
        return self.encoder.features(x)

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """Return the embeddings (B, P) of features (B, D)."""
        return self.encoder.project(features)

    def copy_backbone_to(self, model: EncoderProtocol) -> None:
        """Copy the teacher's backbone weights to all norm banks of ``model``.

        Raises:
            UsageError: when the teacher has another architecture.
        """
        try:
            _copy(self.encoder, "backbone", model)
        except RuntimeError as error:
            message = f"the teacher is another network: {_first_difference(error)}; {UNINITIALIZED}"
            raise UsageError(message, parameter="teacher", given=None, allowed="the same network") from error

    def copy_projector_to(self, model: EncoderProtocol) -> None:
        """Copy the teacher's projector weights to ``model``.

        Raises:
            UsageError: when the teacher has another projector.
        """
        try:
            _copy(self.encoder, "projector", model)
        except RuntimeError as error:
            message = "the teacher has no projector of the student's kind; use a SimCLR run, or projector_weight 0"
            raise UsageError(message, parameter="teacher", given=None, allowed="a SimCLR run") from error

    @classmethod
    def of_student(
        cls, encoder: EncoderProtocol | str | None, model: EncoderProtocol, objective: str, *, initialize: bool = True
    ) -> "Teacher":
        """Return the teacher of ``model``, on its device.

        Args:
            encoder: trained encoder; None and paths are rejected.
            model: the student.
            objective: name of the objective, for error messages.
            initialize: initialize the student's backbone with the teacher's weights, for which both must be the same
                network.

        Raises:
            UsageError: when no encoder is given, or one of another architecture to start from.
        """
        if encoder is None:
            raise UsageError(
                f"objective {objective!r} needs a teacher: train one with acl-plugin pretrain --objective simclr "
                f"--out TEACHER, then give --objective-kwargs.teacher TEACHER, or timm:NAME for pretrained weights (in "
                f"Python: teacher=acl_plugin.load_encoder(TEACHER))",
                parameter="teacher", given=None, allowed="a trained encoder",
            )  # fmt: skip
        teacher = cls(cast(EncoderProtocol, encoder))
        theirs, ours = (getattr(each, "spec", None) for each in (encoder, model))
        if theirs is not None and ours is not None:
            names = [n for n in ("backbone", "kwargs", "stem", "shape") if getattr(theirs, n) != getattr(ours, n)]
            other = "; ".join(f"{name} {getattr(theirs, name)}, here {getattr(ours, name)}" for name in names)
            size, own_size = (tuple(cast(Any, each).preprocess.size) for each in (encoder, model))
            if not other and size != own_size:
                other = f"input_size {size}, here {own_size}"
            if other and initialize:
                message = f"the teacher is another network: {other}; {UNINITIALIZED}"
                raise UsageError(message, parameter="teacher", given=theirs, allowed="the same network")
            if initialize and (theirs.mean, theirs.std) != (ours.mean, ours.std):
                by = f"mean {theirs.mean} and std {theirs.std}, the student by {ours.mean} and {ours.std}"
                logger.warning(f"{objective}: the teacher normalizes images by {by}; it starts as another function")
            channels_last(teacher)
        if initialize:
            teacher.copy_backbone_to(model)
        return teacher.to(next(model.parameters()).device)


def embedding_size(model: EncoderProtocol) -> int:
    """Return P, the size of the embeddings."""
    weight = next(model.parameters())
    with torch.no_grad(), norm_banks.inference(model):
        return model.project(weight.new_zeros(1, model.size)).shape[1]


def together(*modules: Network) -> nn.ModuleList:
    """Return a module list, to switch modes and flags of all modules together during an attack."""
    return nn.ModuleList([cast(nn.Module, module) for module in modules])


def _copy(source: EncoderProtocol, part: str, model: EncoderProtocol) -> None:
    plain = norm_banks.export(getattr(source, part), source.norm_banks[0])
    network = getattr(model, part)
    norm_banks.load_banks(network, dict.fromkeys(norm_banks.declared(network), plain.state_dict()))


def _first_difference(error: RuntimeError) -> str:
    """Return the first line of ``load_state_dict``'s message that lists weights."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()[1:]]
    return lines[0][:200] if lines else str(error)
