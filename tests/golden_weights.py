"""Weights of the authors' networks, made again from a seed by the names and shapes of their state dict."""

import math

import torch

SEED = 21


def weights_of(shapes, values):
    """Return a state dict in float64.

    Args:
        shapes: names and shapes, in order, such as ``conv1.weight 64x3x3x3``.
        values: entries that the authors' class sets itself, by name.
    """
    generator = torch.Generator().manual_seed(SEED)
    state = {}
    for line in shapes:
        name, _, sides = line.partition(" ")
        shape = tuple(map(int, sides.split("x"))) if sides else ()
        if name in values:
            state[name] = torch.tensor(values[name], dtype=torch.float64).view(shape)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
        else:
            state[name] = _drawn(name, torch.rand(shape, dtype=torch.float64, generator=generator))
    return state


def _drawn(name, uniform):
    """Return weights of a layer whose outputs are about as large as its inputs, and of a norm that is not trivial."""
    if uniform.ndim > 1:
        return (2 * uniform - 1) * math.sqrt(6 / uniform[0].numel())
    return uniform + 0.5 if name.endswith(("running_var", "weight")) else (uniform - 0.5) / 2


def images_of(side):
    """Return two images (2, 3, side, side) in [0, 1], float64."""
    return torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED + 1))


def shown(outputs):
    """Return some of the outputs (2, D), and one number of all."""
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view_as(outputs)
    return [*outputs[:, :: max(1, outputs.shape[1] // 8)].flatten().tolist(), (outputs * weights).sum().item()]
