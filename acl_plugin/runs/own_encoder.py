"""Record of the encoder of the user's own that a run was started with, to compare with that of a later start."""

import hashlib
import logging
from typing import Any, cast

from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.spec import spec_of
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import write_json

logger = logging.getLogger(__name__)

WEIGHTS = "weights_sha256"
"""Entry of the record that may differ: a network without a seed starts from others, and a run resumes with its own."""


def described(encoder: EncoderProtocol) -> dict[str, Any]:
    """Return how an encoder normalizes images and features, a hash of its names and shapes, and one of its weights."""
    spec, module = spec_of(encoder, (0, 0, 0)), cast(nn.Module, encoder)
    shapes = {k: list(v.shape) for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    structure = hashlib.sha256(f"{sorted(shapes.items())} {encoder.projector}".encode()).hexdigest()
    return {
        "mean": [float(f"{value:.6g}") for value in spec.mean],
        "std": [float(f"{value:.6g}") for value in spec.std],
        "normalized": spec.normalized,
        "structure": structure[:12],
        WEIGHTS: weights_hash(module),
    }


def check(run: RunDir, encoder: dict[str, Any]) -> None:
    """Refuse another encoder than that which the run was started with; other weights of the same are logged.

    Args:
        run: run folder, new or not; one of an earlier version has no record.
        encoder: see ``described``.

    Raises:
        UsageError: with the differences.
    """
    before = read_record(run.own_encoder_file) if run.own_encoder_file.is_file() else encoder
    other = [name for name, value in encoder.items() if name != WEIGHTS and before.get(name) != value]
    if other:
        details = "; ".join(f"{name} {encoder[name]}, there {before.get(name)}" for name in other)
        message = f"`encoder` is another network than that which {run.path} was started with: {details}"
        raise UsageError(message, parameter="encoder", given=details, allowed="the same network")
    if before.get(WEIGHTS) != encoder[WEIGHTS]:
        logger.warning(f"`encoder` has other weights than {run.path} was started with, whose own are taken")


def record(run: RunDir, encoder: dict[str, Any]) -> None:
    """Write the record at the first start."""
    if not run.own_encoder_file.is_file():
        write_json(run.own_encoder_file, encoder)
