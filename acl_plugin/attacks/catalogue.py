"""Catalogue of attacks, torchattacks' and registered ones: supported norms and modes, and valid arguments."""

import math
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any

from acl_plugin.errors import UsageError, unknown
from acl_plugin.registry import ATTACKS
from acl_plugin.validation import NORMS

MODES = ("pairwise", "bank", "scalar")
FREE = "free"
"""Name of free adversarial training, for a pretraining: no class of torchattacks (see ``FreeAttack``)."""
_WHOLE_BATCH = {
    "Linf": (
        "FGSM BIM RFGSM PGD EOTPGD FFGSM MIFGSM NIFGSM SINIFGSM VMIFGSM VNIFGSM UPGD DIFGSM TIFGSM PIFGSM PIFGSMPP"
    ),
    "L2": "PGDL2",
}
_ROW_BY_ROW = {
    "Linf": "APGD APGDT FAB Square Jitter TPGD SPSA PGDRS",
    "L2": "APGD APGDT FAB Square CW DeepFool PGDRSL2",
}
_OF_TORCHATTACKS = {
    name: (tuple(norm for norm in table if name in table[norm].split()), table is _WHOLE_BATCH)
    for table in (_WHOLE_BATCH, _ROW_BY_ROW)
    for classes in table.values()
    for name in classes.split()
}
"""Norms of each class, and whether it follows the gradient of the whole batch."""
RGB_ONLY = ("TIFGSM", "PIFGSM", "PIFGSMPP")
SQUARE_ONLY = ("DIFGSM", "TIFGSM")
"""Classes that resize images, and pad them to a square of their width."""
STEPS = ("steps", "num_iter_set", "nb_iter", "n_queries")
"""Arguments of torchattacks that set the number of steps."""
_FIXED = ("model", "eps", "max_epsilon", "norm", "n_classes")  # set by the threat model and the classifier
_COUNTS = (*STEPS, "n_restarts", "eot_iter", "N", "m", "nb_sample", "max_batch_size", "noise_batch_size", "batch_max",
           "len_kernel")  # fmt: skip
_ABOVE_0 = ("alpha", "lr", "delta", "c", "nsig", "alpha_max", "amplification")
_CHOICES = {
    ("APGD", "loss"): ("ce", "dlr"),
    ("Square", "loss"): ("margin", "ce"),
    ("UPGD", "loss"): ("ce", "margin", "dlr"),
    ("TIFGSM", "kernel_name"): ("gaussian", "linear", "uniform"),
    ("PGDRS", "noise_type"): ("guassian", "uniform"),  # spelled as torchattacks does
    ("PGDRSL2", "noise_type"): ("guassian", "uniform"),
}


def attack_names(norm: str | None = None, mode: str | None = None) -> list[str]:
    """Return the names of the attacks that support a norm and a mode; None stands for any."""

    def fits(name: str) -> bool:
        try:
            return supports(name, norm, mode)
        except UsageError:  # a broken one of another distribution, which fails where it is chosen
            return False

    return sorted(name for name in {*_OF_TORCHATTACKS, *ATTACKS.names()} if fits(name))


def training_names(norm: str | None = None, mode: str | None = None) -> list[str]:
    """Return the names of the attacks that a pretraining can use: those of ``attack_names``, and ``free``."""
    return sorted([*attack_names(norm, mode), FREE])


def require_unique(name: str) -> None:
    """Check that nobody has registered an attack under a name of torchattacks, or ``free``: it would not be used.

    Raises:
        UsageError: if somebody has.
    """
    if name in (FREE, *_OF_TORCHATTACKS) and name in ATTACKS:
        message = f"attack {name!r}: another attack is registered under this name; register it under another name"
        raise UsageError(message, parameter="attack", given=name, allowed="another name for the registered one")


def supports(name: str, norm: str | None = None, mode: str | None = None) -> bool:
    """Return whether there is an attack of this name, for a norm and a mode; None stands for any.

    Only for a name that torchattacks does not have, the entry points of other distributions are read: that takes
    milliseconds, and attacks are checked in every training step.
    """
    if name == FREE:
        norms, whole_batch = tuple(_WHOLE_BATCH), True
    elif name in _OF_TORCHATTACKS:
        norms, whole_batch = _OF_TORCHATTACKS[name]
    elif name in ATTACKS and norm is None and mode is None:
        return True
    elif name in ATTACKS:
        norms, whole_batch = _declared(name)
    else:
        return False
    return norm in (None, *norms) and mode in (None, *(MODES if whole_batch else ("bank",)))


def _declared(name: str) -> tuple[tuple[str, ...], bool]:
    """Return the norms of a registered attack, and whether it follows the gradient of the whole batch.

    Raises:
        UsageError: for a class that declares anything else.
    """
    attack = ATTACKS.get(name)
    norms, whole_batch = getattr(attack, "norms", None), getattr(attack, "whole_batch", False)
    if not isinstance(norms, tuple | list) or not norms or any(norm not in NORMS for norm in norms):
        raise ATTACKS.broken(f"attack {name!r} is broken: norms {norms!r}; allowed is a tuple of {NORMS}", name)
    if not isinstance(whole_batch, bool):
        raise ATTACKS.broken(f"attack {name!r} is broken: whole_batch {whole_batch!r}; allowed is a bool", name)
    if not {"eps", "max_epsilon"} & defaults(name).keys():
        allowed = "a class with the argument eps or max_epsilon"
        raise ATTACKS.broken(
            f"attack {name!r} is broken: it takes no eps, and would move by its own; allowed is {allowed}", name
        )
    return tuple(norms), whole_batch


def class_of(name: str) -> Any:
    """Return the class of an attack, of torchattacks or registered; torchattacks' names cannot be replaced."""
    if name not in _OF_TORCHATTACKS:
        return ATTACKS.get(name)
    import torchattacks

    return getattr(torchattacks, name)


def defaults(name: str) -> dict[str, Any]:
    """Return the arguments of a torchattacks class with their defaults; those of a parent if it takes ``**kwargs``."""
    attack, found = class_of(name), dict[str, Any]()
    for owner in getattr(attack, "__mro__", (attack,)):
        parameters = list(signature(owner if owner is attack else owner.__init__).parameters.values())
        own = [p for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        found = {p.name: p.default for p in own if p.name != "self"} | found
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def fewest_classes(name: str, arguments: Mapping[str, Any]) -> int:
    """Return the minimum number of classes: the DLR loss compares three logits, the targeted DLR loss four."""
    if name == "APGDT":
        return 4
    return 3 if arguments.get("loss") == "dlr" else 2


def check_count(name: str, value: Any) -> None:
    """Check that a value is an integer of at least 1.

    Raises:
        UsageError: naming the parameter.
    """
    allowed = "a whole number of 1 or more"
    if not is_count(value):
        raise UsageError(f"attack {name} {value!r}: allowed is {allowed}", parameter=name, given=value, allowed=allowed)


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check the names of the arguments of an attack, and for torchattacks' classes and ours types and ranges.

    Raises:
        UsageError: naming the argument and the allowed values.
    """
    if not isinstance(arguments, Mapping):
        message = f"arguments of attack {name!r}: {arguments!r}; allowed is a dict by name"
        raise UsageError(message, parameter="kwargs", given=arguments, allowed="a dict by name")
    known = {argument: value for argument, value in defaults(name).items() if argument not in _FIXED}
    is_known = getattr(class_of(name), "__module__", "").partition(".")[0] in ("torchattacks", "acl_plugin")
    for argument, value in arguments.items():
        if argument not in known:
            raise unknown(f"argument of attack {name!r}:", argument, known, parameter="kwargs")
        allowed, fits = _rule(name, argument, known[argument])
        if is_known and not fits(value):
            message = f"argument {argument} {value!r} of attack {name!r}: allowed is {allowed}"
            raise UsageError(message, parameter=argument, given=value, allowed=allowed)


def _rule(name: str, argument: str, default: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return a description of the allowed values, and a function that checks a value."""
    if isinstance(default, bool):
        return "true or false", lambda value: isinstance(value, bool)
    if (name, argument) in _CHOICES:
        choices = _CHOICES[name, argument]
        return " or ".join(choices), lambda value: isinstance(value, str) and value in choices
    if argument in _COUNTS:
        return "a whole number of 1 or more", is_count
    if argument == "seed":
        return "a whole number from 0 to 2**63 - 1", lambda value: _is_whole(value) and 0 <= value < 2**63
    if argument == "p_init":
        return "a number above 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1
    if argument == "resize_rate":
        return "a number above 0, other than 1", lambda value: _is_number(value) and value > 0 and value != 1
    if argument in _ABOVE_0:
        return "a number above 0", lambda value: _is_number(value) and value > 0
    return "a number of 0 or more", lambda value: _is_number(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Return whether a value is an integer of at least 1."""
    return _is_whole(value) and value >= 1
