"""Objectives by name: our recipes, and those that other distributions bring as entry points."""

import inspect
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from acl_plugin.errors import UsageError, unknown

GROUP = "acl_plugin.objectives"
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
Factory = TypeVar("Factory", bound=Callable[..., Any])
_factories: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Register an objective class (or any factory of one) under ``name``.

    Raises:
        ValueError: when ``name`` is taken by something else, or no name (it also names folders).

    Example:
        >>> @acl_plugin.register("my_objective")
        ... class MyObjective(acl_plugin.Objective): ...
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"objective name {name!r}: allowed are letters, digits and _, starting with a letter")

    def add(factory: Factory) -> Factory:
        taken = _factories.get(name, factory)
        if taken is not factory:
            raise ValueError(f"objective {name!r} is already registered by {taken.__module__}.{taken.__qualname__}")
        _factories[name] = factory
        return factory

    return add


def unregister(name: str) -> None:
    """Forget a registered objective (for tests and notebooks that define one again)."""
    _factories.pop(name, None)


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP) if NAME.fullmatch(entry.name)}


def available() -> list[str]:
    """The names of all objectives, sorted. Entry points are named but not loaded."""
    return sorted({*_factories, *_entry_points()})


def factory_of(name: str) -> Callable[..., Any]:
    """The class or factory registered under ``name``; loads its entry point if it is one.

    Raises:
        UsageError: for an unknown name, or an entry point that cannot be loaded (with its distribution's name).
    """
    if name not in _factories:
        entry = _entry_points().get(name)
        if entry is None:
            raise unknown("objective", name, available())
        try:
            loaded = entry.load()
        except Exception as error:
            dist = entry.dist.name if entry.dist else "an unknown distribution"
            raise UsageError(
                f"objective {name!r} of {dist} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        _factories.setdefault(name, loaded)
    return _factories[name]


def create_objective(name: str, **settings: Any) -> Any:
    """Create the objective registered under ``name``.

    Args:
        name: one of ``available``.
        settings: the objective's own settings, such as ``temperature=0.5``.

    Raises:
        UsageError: for an unknown name or setting, or a value the objective refuses.
    """
    factory = factory_of(name)
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for setting in settings:
            if setting not in parameters:
                raise unknown(f"setting of objective {name!r}:", setting, parameters)
    return factory(**settings)
