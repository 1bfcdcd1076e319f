"""Write and read the discriminator that was trained with the encoder of a run, as a critic for audits."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from acl_plugin.losses.discriminator import Discriminator
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import damaged, read_intact, torch_bytes, write_atomic


def write_discriminator(run: RunDir, layer: str, discriminator: Discriminator) -> None:
    """Write a discriminator and the layer that it reads, ``projections`` (normalized) or ``features``."""
    weights = {name: value.cpu() for name, value in discriminator.network.state_dict().items()}
    write_atomic(run.discriminator_file, torch_bytes({"layer": layer, "weights": weights}))


def read_discriminator(run: RunDir) -> tuple[str, Discriminator] | None:
    """Return layer and discriminator of a run; None for a run without one.

    Raises:
        UsageError: when the file is damaged or of another type.
    """
    if not run.discriminator_file.is_file():
        return None
    try:
        content = read_intact(run.discriminator_file)
        return content["layer"], from_weights(content["weights"])
    except Exception as error:  # the unpickler raises many types
        message = f"is damaged or no discriminator: {type(error).__name__}"
        raise damaged(run.discriminator_file, message) from error


def from_weights(weights: Mapping[str, Tensor]) -> Discriminator:
    """Return the discriminator with these weights of one linear layer, or of two with a ReLU between them.

    Raises:
        ValueError: for other layers.
    """
    plain = {re.sub(r"^d\.", "", name): value.float() for name, value in weights.items()}
    if plain.keys() not in ({"0.weight", "0.bias"}, {"0.weight", "0.bias", "2.weight", "2.bias"}):
        raise ValueError(f"no discriminator of one or two linear layers: {', '.join(weights)}")
    size = plain["0.weight"].shape[1]
    discriminator = Discriminator(size, "deep" if "2.weight" in plain else "linear")
    try:
        discriminator.network.load_state_dict(plain)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return discriminator.eval().requires_grad_(False)


def logits(encoder: EncoderProtocol, layer: str, discriminator: Discriminator, features: Tensor) -> Tensor:
    """Return the discriminator's logit of "benign" for features: (N, D) -> (N,) on the CPU, in float64."""
    device = next(encoder.parameters()).device
    with torch.no_grad():
        values = features.float().to(device)
        if layer == "projections":
            values = torch.nn.functional.normalize(encoder.project(values), dim=1)
        found: Tensor = discriminator.to(device).values(values)
    return found.double().cpu()
