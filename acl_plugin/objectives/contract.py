"""Checks of what an objective returns, and the parameters of its own that are trained by default."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.validation import refused_value

COLUMNS = ("epoch", "step", "loss", "attack_moved", "knn_accuracy")
"""Columns of metrics.csv that the trainer writes itself."""
SCALAR = "a scalar tensor of real numbers: take the mean over the batch"


def check_scalar(name: str, value: Any) -> None:
    """Check that a value is a real scalar tensor.

    Raises:
        UsageError: with its type or shape.
    """
    if not isinstance(value, Tensor):
        raise refused_value(name, type(value).__name__, SCALAR)
    if value.ndim or value.is_complex():
        raise refused_value(name, str(value.dtype) if value.is_complex() else tuple(value.shape), SCALAR)


def check_parts(parts: Any, collapsed: Any) -> None:
    """Check the names and values of the parts of a loss, and their values for equal embeddings.

    Raises:
        UsageError: naming the part.
    """
    for field, given in (("parts", parts), ("collapsed", collapsed)):
        if not isinstance(given, Mapping):
            raise refused_value(f"terms.{field}", type(given).__name__, "a dict of names to values")
    for name, part in parts.items():
        if not isinstance(name, str) or not name or name in COLUMNS:
            raise refused_value("name of a part", name, f"any other text than {', '.join(COLUMNS)}: rename the part")
        check_scalar(f"part {name}", part)
    for name, level in collapsed.items():
        _check_number(f"collapsed value of part {name}", level)


def check_weighted(parts: Mapping[str, Any]) -> None:
    """Check the arguments of ``Terms.weighted``: ``(weight, part)`` or ``(weight, part, collapsed)`` each.

    Raises:
        UsageError: naming the part.
    """
    for name, given in parts.items():
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            shown = f"a tuple of {len(given)}" if isinstance(given, tuple | list) else type(given).__name__
            raise refused_value(f"part {name}", shown, "(weight, part) or (weight, part, collapsed)")
        weight, part, *level = given
        if not isinstance(weight, Tensor):
            _check_number(f"weight of part {name}", weight)
        if not isinstance(part, Tensor):
            allowed = "a scalar tensor, such as a loss of acl_plugin.losses"
            raise refused_value(f"part {name}", type(part).__name__, allowed)
        if level:
            _check_number(f"collapsed value of part {name}", level[0])


def require_pair(name: str, found: Any) -> tuple[Tensor, Tensor]:
    """Return loss and estimate of the divergence ``name``, after checking that they are scalar tensors.

    Raises:
        UsageError: naming the divergence.
    """
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise refused_value(f"divergence {name}", type(found).__name__, "a forward that returns (loss, estimate)")
    loss, estimate = found
    check_scalar(f"loss of divergence {name}", loss)
    check_scalar(f"estimate of divergence {name}", estimate)
    return loss, estimate


def own_parameters(objective: nn.Module, model: EncoderProtocol) -> list[nn.Parameter]:
    """Return the parameters of an objective that require a gradient, and that no optimizer of its modules trains."""
    held = (value for module in objective.modules() for value in vars(module).values())
    optimizers = [value for value in held if isinstance(value, torch.optim.Optimizer)]
    trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trained |= {id(p) for p in model.parameters()}
    return [p for p in objective.parameters() if p.requires_grad and id(p) not in trained]


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        shown = tuple(value.shape) if isinstance(value, Tensor) else value
        raise refused_value(name, shown, "a finite number that is no tensor")
