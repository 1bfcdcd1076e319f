"""Faster convolutions on small maps: on a CPU, several images side by side as one.

A convolution of oneDNN reads all its weights for each row of an image. On maps of 4 x 4 with 512 channels it waits for
them most of the time, and the gradient of the weights takes longer still. With 16 images in a row, zeros in between,
every read serves 64 pixels instead of 4. Outputs and gradients are the same up to rounding.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
FEWEST_WEIGHTS = 1 << 20
"""Size of the smallest layer that gains, such as 256 to 512 channels with a 3 x 3 kernel."""
WIDTHS = range(2, 5)
"""Widths of the output that gain."""
IN_A_ROW = 16
"""Number of images in a row."""
DTYPES = (torch.float32, torch.bfloat16)
"""Types that oneDNN multiplies in."""


class SmallMapConv2d(nn.Conv2d):
    """Convolution that puts images side by side where their maps are small."""

    def forward(self, x: Tensor) -> Tensor:
        if _recorded(x) or x.ndim != 4 or len(x) < 2 or x.device.type != "cpu" or x.dtype not in DTYPES:
            return super().forward(x)
        width = _known(x.shape[-1], max(1, (WIDTHS.stop - 1) * self.stride[1] + self._reach() - self._added()))
        return self._side_by_side(x, width) if self._output(width) in WIDTHS else super().forward(x)

    def _output(self, width: int) -> int:
        """Return the output's width for the input's."""
        return (width + self._added() - self._reach()) // self.stride[1] + 1

    def _reach(self) -> int:
        """Return the width of a window."""
        return self.dilation[1] * (self.kernel_size[1] - 1) + 1

    def _added(self) -> int:
        """Return the width of the padding on both sides."""
        return 2 * int(self.padding[1])

    def _side_by_side(self, x: Tensor, width: int) -> Tensor:
        """Return the convolution of (B, C, H, W), with rows of images that no window of another image reaches."""
        size, step = len(x), self.stride[1]
        count = _known(size, IN_A_ROW)
        lines = -(-size // count)
        slot = max(-(-(width + int(self.padding[1])) // step), self._output(width))  # columns of the output per image
        if lines * count > size:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, lines * count - size))
        rows = x.unflatten(0, (lines, count)).permute(0, 3, 1, 4, 2)  # (B / n, H, n, W, C), the order in memory
        rows = F.pad(rows, (0, 0, 0, slot * step - width)).flatten(2, 3)
        y = super().forward(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.pad(y, (0, 0, 0, slot * count - y.shape[2]))  # which also cuts off
        y = y.unflatten(2, (count, slot))[:, :, :, : self._output(width)].transpose(1, 2).flatten(0, 1)
        return y[:size].contiguous().permute(0, 3, 1, 2)


def small_maps(model: Network) -> Network:
    """Make the convolutions of a model that may gain ``SmallMapConv2d``, in place, and return the model."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _gains(layer):
            layer.__class__ = SmallMapConv2d
    return model


def _recorded(x: Tensor) -> bool:
    """Return whether the pass is recorded, for batches of any size: exported or traced."""
    exported = getattr(torch.compiler, "is_exporting", bool)  # torch 2.5 has none
    return exported() or not all(isinstance(x.shape[axis], int) for axis in (0, -1))


def _known(size: int, most: int) -> int:
    """Return the size, or ``most`` if it is larger, as a number even while a compiler has a symbol for the size.

    Inductor places images in rows only if their number and their width are numbers. Comparing makes a symbol one;
    ``in`` does not: torch 2.5 would take the graph of one size for another.
    """
    known = 1
    while known != size and known != most:
        known += 1
    return known


def _gains(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and layer.kernel_size[1] > 1 and layer.weight.numel() >= FEWEST_WEIGHTS
