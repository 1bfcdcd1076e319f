"""Check of the shapes of embeddings that a loss or an estimate compares."""

from torch import Tensor

from acl_plugin.errors import UsageError
from acl_plugin.validation import refused_value


def check_embeddings(fewest: int = 1, **embeddings: Tensor) -> None:
    """Check that embeddings are (B, P) floats of one shape, B at least ``fewest``.

    Raises:
        UsageError: naming the first that is not.

    Example:
        >>> check_embeddings(za=torch.zeros(3, 2), zb=torch.zeros(3, 2))
    """
    first = ""
    for name, z in embeddings.items():
        if not isinstance(z, Tensor) or z.dim() != 2 or not z.is_floating_point() or len(z) < fewest:
            given = f"{tuple(z.shape)}, {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
            raise refused_value(name, given, "(B, P) floats" + (f", B at least {fewest}" if fewest > 1 else ""))
        first = first or name
        shape, allowed = tuple(z.shape), tuple(embeddings[first].shape)
        if shape != allowed:
            message = f"{name} has the shape {shape}, and {first} {allowed}: row i of both is of the same image"
            raise UsageError(message, parameter=name, given=shape, allowed=allowed)
