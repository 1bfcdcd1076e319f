"""Registries of objectives, datasets, attacks, probe protocols, suites, export formats and boards by name.

To add to one of them, define an entry point of the registry's group in a distribution, or call ``register`` in a
script.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from acl_plugin.errors import UsageError, reason, unknown
from acl_plugin.validation import refused_value

NAME = re.compile(r"\d*[A-Za-z]\w*", re.ASCII)
NAMES = "letters, digits and _, starting with a letter, or with digits and a letter"
Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry:
    """Classes or functions of one kind by name.

    Args:
        kind: kind in the singular, for messages.
        group: group of the entry points.
        parameter: option whose value is such a name.
        argument: whether users may append a colon and an argument to a name, as in ``hf:NAME``.
        ours: names that a module of this package registers when it is imported, separated by spaces, by module. It is
            imported with the first name that is needed, so that names alone do not import PyTorch.

    Example:
        >>> acl_plugin.registry.OBJECTIVES.get("simclr")
        <class 'acl_plugin.objectives.simclr.SimCLR'>
    """

    def __init__(
        self,
        kind: str,
        group: str,
        parameter: str,
        ours: Mapping[str, str],
        *,
        argument: bool = False,
    ) -> None:
        self.kind, self.group, self.parameter, self.argument = kind, group, parameter, argument
        self._modules = {name: f"acl_plugin.{module}" for module, names in ours.items() for name in names.split()}
        self._factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Register the decorated class or function under ``name``.

        Raises:
            UsageError: when ``name`` is already taken, or invalid (it also names folders).
        """
        if not self._is_name(name):
            raise UsageError(
                f"{self.kind} name {name!r}: allowed are {NAMES}", parameter="name", given=name, allowed=NAMES
            )

        def add(factory: Factory) -> Factory:
            if factory.__module__ != self._modules.get(name):
                self._import(name)
            taken = self._factories.get(name, factory)
            if taken is not factory:
                raise UsageError(
                    f"{self.kind} {name!r} is already registered by {_origin(taken)}",
                    parameter="name", given=name, allowed="a name that is free",
                )  # fmt: skip
            self._factories[name] = factory
            return factory

        return add

    def unregister(self, name: str) -> None:
        """Remove a registered name, for tests and for notebooks that redefine a class."""
        self._factories.pop(name, None)
        self._modules.pop(name, None)

    def names(self) -> list[str]:
        """Return all names, sorted, without loading entry points or modules."""
        return sorted({*self._modules, *self._factories, *(entry.name for entry in self._entry_points())})

    def is_ours(self) -> bool:
        """Return whether this package alone registers names."""
        return not self._entry_points() and self._factories.keys() <= self._modules.keys()

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        name = self._registered(name)
        return name in self._modules or name in self._factories or bool(self._entry_points(name))

    def require(self, name: str) -> None:
        """Check that a name is registered, without loading it.

        Raises:
            UsageError: for an unknown name, with the nearest; for an entry point whose name is not allowed.
        """
        if name not in self:
            for entry in (e for e in entry_points(group=self.group) if e.name == name):
                message = f"{self.kind} {name!r} of {_distribution(entry)} has a name that is not allowed"
                raise self.broken(f"{message}: allowed are {NAMES}; rename its entry point", name)
            raise unknown(self.kind, self._registered(name), self.names(), parameter=self.parameter)

    def get(self, name: str) -> Callable[..., Any]:
        """Return the class or function registered under ``name``; load its entry point if necessary.

        Raises:
            UsageError: for an unknown name, an entry point that cannot be loaded (with its distribution's name), or a
                name registered by several distributions, in any order.
        """
        self.require(name)
        name = self._registered(name)
        self._import(name)
        entries = self._entry_points(name)
        found = [(self._load(entry), _distribution(entry)) for entry in entries]
        if name in self._factories:
            found.append((self._factories[name], _origin(self._factories[name])))
        owners = {id(factory): owner for factory, owner in reversed(found)}
        if len(owners) > 1:
            several = " and ".join(sorted(owners.values()))
            raise UsageError(
                f"{self.kind} {name!r} is registered by {several}; uninstall one of them, or register it under another "
                f"name",
                parameter=self.parameter, given=name, allowed=tuple(other for other in self.names() if other != name),
            )  # fmt: skip
        return self._factories.setdefault(name, found[0][0])

    def _import(self, name: str) -> None:
        """Import the module of this package that registers ``name``, if there is one."""
        if name in self._modules and name not in self._factories:
            importlib.import_module(self._modules[name])

    def _registered(self, name: str) -> str:
        """Return the name without its argument."""
        return name.partition(":")[0] if self.argument else name

    def broken(self, message: str, name: str, cause: UsageError | None = None) -> UsageError:
        """Return the error for an invalid registration, with the fields of its ``cause`` if there is one."""
        if cause is not None:
            return UsageError(message, parameter=cause.parameter, given=cause.given, allowed=cause.allowed)
        return UsageError(message, parameter=self.parameter, given=name, allowed="a class or function")

    def _is_name(self, name: object) -> bool:
        return isinstance(name, str) and NAME.fullmatch(name) is not None

    def _entry_points(self, name: str | None = None) -> list[EntryPoint]:
        """Return all entry points, or those called ``name``, in an order independent of the installation order."""
        found = [e for e in entry_points(group=self.group) if self._is_name(e.name) and name in (None, e.name)]
        return sorted(found, key=lambda entry: (entry.name, _distribution(entry), entry.value))

    def _load(self, entry: EntryPoint) -> Callable[..., Any]:
        what = f"{self.kind} {entry.name!r} of {_distribution(entry)}"
        try:
            loaded: Callable[..., Any] = entry.load()
        except Exception as error:
            raise self.broken(f"{what} cannot be loaded: {reason(error)}", entry.name) from error
        if not callable(loaded):
            raise self.broken(f"{what} is {type(loaded).__name__}, no class or function", entry.name)
        return loaded


OBJECTIVES = Registry(
    "objective",
    "acl_plugin.objectives",
    "objective",
    {
        "objectives.a_infonce": "a_infonce",
        "objectives.acl": "acl_a2a acl_a2s acl_ds",
        "objectives.advcl": "advcl",
        "objectives.air": "acl_air dynacl_air",
        "objectives.barlow_twins": "barlow_twins",
        "objectives.byol": "byol",
        "objectives.clae": "clae",
        "objectives.deacl": "deacl",
        "objectives.dynacl": "dynacl",
        "objectives.fare": "fare",
        "objectives.gsa_rsl": "gsa_rsl",
        "objectives.moco": "moco",
        "objectives.profeat": "profeat",
        "objectives.rocl": "rocl",
        "objectives.simclr": "simclr",
        "objectives.simsiam": "simsiam",
        "objectives.three_sat": "3sat",
        "objectives.vicreg": "vicreg",
    },
)
"""Subclasses of ``acl_plugin.Objective``, or functions that return an objective."""
DATASETS = Registry(
    "dataset",
    "acl_plugin.datasets",
    "data",
    {
        "data.datasets": "digits digits_0_4 digits_5_9 digits_val",
        "data.hugging_face": "hf",
        "data.imagenet": "imagenet tiny_imagenet",
        "data.own_images": "image_folder",
        "data.published_sets": "cifar10 cifar10_val cifar100 stl10 stl10_unlabeled",
    },
    argument=True,
)
"""Functions that load a dataset: ``acl_plugin.config.DataConfig`` -> ``acl_plugin.data.images.DataSet``.

A function may have an attribute ``defaults``, a mapping of options to their defaults on this dataset.
"""
PROTOCOLS = Registry(
    "probe protocol",
    "acl_plugin.protocols",
    "probe_protocol",
    {"probing.protocols": "slf slf_exact alf alf_trades aff_trades aff_pgd aff_autolora semi gsa_slf gsa_alf"},
)
"""Functions that train a classifier: ``acl_plugin.probing.inputs.Probing`` -> values to record."""

ATTACKS = Registry(
    "attack", "acl_plugin.attacks", "attack", {"attacks.auto_pgd": "AutoPGD", "attacks.momentum_pgd": "MomentumPGD"}
)
"""Attacks beside those of torchattacks: classes with the interface of ``torchattacks.Attack``.

Attributes of the class declare its use. ``norms``: the threat models, such as ``("Linf",)``. ``whole_batch``: whether
it follows the gradient of the whole batch, as contrastive losses need, instead of treating samples independently.
"""
SUITES = Registry(
    "suite",
    "acl_plugin.suites",
    "suite",
    {"evaluation.encoder_folder": "embedding", "evaluation.run_folder": "autoattack standard corruptions"},
)
"""Functions that evaluate a run folder: ``suite(run, config, *, overwrite)`` -> values to print.

``run`` is an ``acl_plugin.runs.folder.RunDir``, ``config`` a ``RunConfig``. Further keyword parameters are options.
"""
EXPORTERS = Registry(
    "export format",
    "acl_plugin.exporters",
    "format",
    {
        "leaderboard.encoder_export": "timm hub torch",
        "leaderboard.export": "robustbench",
        "leaderboard.robustssl_export": "robustssl",
    },
)
"""Functions that export a run folder: ``export(run, **options)`` -> path of the result."""
BOARDS = Registry("board", "acl_plugin.boards", "board", {"leaderboard.robustssl": "robustssl"})
"""Functions without arguments that return an ``acl_plugin.leaderboard.boards.Board``."""

register, unregister, available = OBJECTIVES.register, OBJECTIVES.unregister, OBJECTIVES.names


def create_objective(name: str, **settings: Any) -> Any:
    """Create the objective registered under ``name``.

    Args:
        name: one of ``available()``.
        settings: settings of the objective, such as ``temperature=0.5``.

    Raises:
        UsageError: for an unknown name or setting, a value that the objective rejects, or an objective that violates
            the contract of ``Objective``.
    """
    factory = OBJECTIVES.get(name)
    parameters: Mapping[str, inspect.Parameter] = {}
    try:
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            for setting in settings:
                if setting not in parameters:
                    raise unknown(f"setting of objective {name!r}:", setting, parameters, parameter=setting)
        for setting, value in settings.items():
            kind = parameters[setting].annotation if setting in parameters else None
            if kind in (bool, bool | None) and not isinstance(value, kind):  # text would be true
                raise refused_value(setting, value, "true or false")
        objective = factory(**settings)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"objective {name!r} cannot be created with {settings}: {reason(error)}",
            parameter="objective_kwargs", given=settings, allowed=tuple(parameters),
        ) from error  # fmt: skip
    except Exception as error:
        raise OBJECTIVES.broken(f"objective {name!r} is broken: {reason(error)}", name) from error
    if not hasattr(objective, "check_contract"):
        message = f"objective {name!r} is {type(objective).__name__}, no acl_plugin.Objective"
        raise OBJECTIVES.broken(message, name)
    try:
        objective.check_contract()
    except UsageError as error:
        raise OBJECTIVES.broken(f"objective {name!r} is broken: {error}", name, error) from error
    return objective


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _origin(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__name__)}"
