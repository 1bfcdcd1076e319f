"""Limit the threads of the libraries under NumPy, SciPy and scikit-learn."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Limit these libraries to one thread, as threads slow down many small products.

    Example:
        >>> with one_thread():
        ...     covariance = torch.rand(100, 8).numpy().T @ torch.rand(100, 8).numpy()
    """
    return _controller().limit(limits=1)


@cache
def _controller() -> ThreadpoolController:
    """Search the loaded libraries once, which takes longer than a small fit."""
    import sklearn.cluster
    import sklearn.linear_model  # noqa: F401  # load what is to be found

    return ThreadpoolController()
