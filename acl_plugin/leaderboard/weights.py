"""Weights of a model in the form of an export's files."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CUT = ("module.", "model.")
"""Texts that RobustBench's loader looks for in names, in its order."""


def saved(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's weights on the CPU; layers that share weights get one each, as safetensors requires.

    Args:
        model: the model, whose weights are contiguous in the result.
    """
    return {k: v.cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}


def for_robustbench(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under names that RobustBench's loader turns into the model's own.

    The loader takes a name that has ``module.`` anywhere for one with this prefix and cuts off as many characters; then
    it does the same for ``model.``. A name such as ``context_module.qkv`` therefore needs the prefix.
    """
    named = dict(weights)
    for text in reversed(CUT):
        named = {text + k if text in k else k: v for k, v in named.items()}
    return named


def of_robustbench(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names that RobustBench's loader gives them."""
    named = dict(weights)
    for text in CUT:
        named = {k[len(text) :] if text in k else k: v for k, v in named.items()}
    return named
