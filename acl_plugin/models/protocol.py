"""The encoder interface that objectives, attacks and norm banks use."""

from collections.abc import Iterator
from os import PathLike
from typing import Any, Protocol, TypeGuard

from torch import Tensor, nn

from acl_plugin.errors import UsageError


class Network(Protocol):
    """Part of ``nn.Module`` that attacks and norm banks use; every ``nn.Module`` implements it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the weights."""

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers, such as running statistics."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield the network and all its layers."""

    def train(self, mode: bool = True) -> Any:
        """Switch between training and eval mode."""


class EncoderProtocol(Network, Protocol):
    """Interface of an encoder: an ``nn.Module`` with backbone f and projector g.

    ``Encoder`` (timm models by name) and ``WrappedEncoder`` (any module) implement it. Images are (B, C, H, W) floats
    in [0, 1]; the encoder resizes and normalizes them. ``norm_bank`` selects one of ``norm_banks``, by default the
    first.

    Attributes:
        size: D, size of the features.
        norm_banks: names of the norm banks, at least one; the first is the default.
        backbone: f without resizing and normalization.
        projector: g.

    Example:
        >>> def spread(encoder: acl_plugin.EncoderProtocol, x: torch.Tensor) -> torch.Tensor:
        ...     return encoder.features(x).std(0)
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> spread(acl_plugin.wrap_encoder(net, (3, 8, 8)), torch.rand(4, 3, 8, 8)).shape
        torch.Size([8])
    """

    size: int
    norm_banks: tuple[str, ...]
    backbone: nn.Module
    projector: nn.Module

    def features(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return f(x): images (B, C, H, W) -> features (B, D)."""

    def project(self, features: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return g of features: (B, D) -> embeddings (B, P)."""

    def forward(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return z = g(f(x)): images (B, C, H, W) -> embeddings (B, P)."""

    def views(self, a: Tensor, b: Tensor, norm_bank: str | None = None) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, P) of two views (B, C, H, W), encoded as one batch of 2B images."""


def is_encoder(value: object) -> TypeGuard[EncoderProtocol]:
    """Return whether ``value`` is a module with all members of ``EncoderProtocol``."""
    names = ("size", "norm_banks", "backbone", "projector", "features", "project", "forward", "views")
    return isinstance(value, nn.Module) and all(hasattr(value, name) for name in names)


def require_encoder(value: object, parameter: str) -> EncoderProtocol:
    """Return ``value`` if it is an encoder.

    Raises:
        UsageError: naming the parameter; also for a path, which must be loaded first.
    """
    if is_encoder(value):
        return value
    allowed = "an encoder, as of acl_plugin.load_encoder(RUN) or acl_plugin.wrap_encoder(module, ...)"
    given = str(value) if isinstance(value, str | PathLike) else f"of type {type(value).__name__}"
    raise UsageError(f"`{parameter}` {given}: allowed is {allowed}", parameter=parameter, given=given, allowed=allowed)
