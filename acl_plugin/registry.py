"""Objectives by name: our recipes, and those that other distributions bring as entry points."""

import inspect
import re
from collections.abc import Callable, Mapping
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
        UsageError: when ``name`` is taken by something else, or no name (it also names folders).

    Example:
        >>> @acl_plugin.register("my_objective")
        ... class MyObjective(acl_plugin.Objective): ...
    """
    if not NAME.fullmatch(name):
        allowed = "letters, digits and _, starting with a letter"
        raise UsageError(
            f"objective name {name!r}: allowed are {allowed}", parameter="name", given=name, allowed=allowed
        )

    def add(factory: Factory) -> Factory:
        taken = _factories.get(name, factory)
        if taken is not factory:
            raise UsageError(
                f"objective {name!r} is already registered by {_origin(taken)}",
                parameter="name", given=name, allowed="a name that is free",
            )  # fmt: skip
        _factories[name] = factory
        return factory

    return add


def unregister(name: str) -> None:
    """Forget a registered objective (for tests and notebooks that define one again)."""
    _factories.pop(name, None)


def _entry_points(name: str | None = None) -> list[EntryPoint]:
    """Of all distributions, or those called ``name``, in an order that is not that of their installation."""
    found = [e for e in entry_points(group=GROUP) if NAME.fullmatch(e.name) and name in (None, e.name)]
    return sorted(found, key=lambda entry: (entry.name, _distribution(entry), entry.value))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def available() -> list[str]:
    """Return the names of all objectives, sorted. Entry points are named but not loaded."""
    return sorted({*_factories, *(entry.name for entry in _entry_points())})


def factory_of(name: str) -> Callable[..., Any]:
    """Return the class or factory registered under ``name``; loads its entry point if it is one.

    Raises:
        UsageError: for an unknown name, an entry point that cannot be loaded (with its distribution's name), or a name
            that stands for several objectives, whichever of them came first.
    """
    entries = _entry_points(name)
    if name not in _factories and not entries:
        raise unknown("objective", name, available())
    found = [(_load(entry), _distribution(entry)) for entry in entries]
    if name in _factories:
        found.append((_factories[name], _origin(_factories[name])))
    owners = {id(factory): owner for factory, owner in reversed(found)}
    if len(owners) > 1:
        details = " and ".join(sorted(owners.values()))
        raise UsageError(
            f"objective {name!r} is registered by {details}; uninstall one of them, or register it under another name",
            parameter="objective", given=name, allowed=tuple(other for other in available() if other != name),
        )  # fmt: skip
    return _factories.setdefault(name, found[0][0])


def _origin(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__name__)}"


def _load(entry: EntryPoint) -> Callable[..., Any]:
    dist = _distribution(entry)
    try:
        loaded: Callable[..., Any] = entry.load()
    except Exception as error:
        raise _broken(f"objective {entry.name!r} of {dist} cannot be loaded: {_line(error)}", entry.name) from error
    if not callable(loaded):
        raise _broken(f"objective {entry.name!r} of {dist} is {type(loaded).__name__}, no class or factory", entry.name)
    return loaded


def create_objective(name: str, **settings: Any) -> Any:
    """Create the objective registered under ``name``.

    Args:
        name: one of ``available``.
        settings: the objective's own settings, such as ``temperature=0.5``.

    Raises:
        UsageError: for an unknown name or setting, a value that the objective refuses, or an objective that breaks the
            contract of ``Objective``.
    """
    factory = factory_of(name)
    parameters: Mapping[str, inspect.Parameter] = {}
    try:
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            for setting in settings:
                if setting not in parameters:
                    raise unknown(f"setting of objective {name!r}:", setting, parameters, parameter=setting)
        objective = factory(**settings)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"objective {name!r} cannot be created with {settings}: {_line(error)}",
            parameter="objective_kwargs", given=settings, allowed=tuple(parameters),
        ) from error  # fmt: skip
    if not hasattr(objective, "check_contract"):
        raise _broken(f"objective {name!r} is {type(objective).__name__}, no acl_plugin.Objective", name)
    try:
        objective.check_contract()
    except UsageError as error:
        raise _broken(f"objective {name!r} is broken: {error}", name, error) from error
    return objective


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _broken(message: str, name: str, cause: UsageError | None = None) -> UsageError:
    """The error about what is registered, with the fields of its ``cause`` if there is one."""
    if cause is not None:
        return UsageError(message, parameter=cause.parameter, given=cause.given, allowed=cause.allowed)
    return UsageError(message, parameter="objective", given=name, allowed="a class or factory of acl_plugin.Objective")
