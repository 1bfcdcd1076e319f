"""Every argument of losses and bounds that takes one of a few names refuses another one."""

import importlib
import inspect
import pkgutil
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from acl_plugin import losses, theory
from acl_plugin.errors import UsageError

Z, LABELS = torch.rand(6, 4), torch.arange(6) % 2
ARGUMENTS = {
    "HardNegatives": (0.1,),
    "JensenShannon": (4,),
    "Discriminator": (4,),
    "two_class_loss": (Z, LABELS),
    "two_class_losses": (Z, LABELS, Z[:2], torch.ones(2) / 2),
    "contrastive_bound": (Z, LABELS),
    "view_contrastive_bound": (Z, Z, LABELS),
}
"""Valid positional arguments of each."""


def choices():
    for package in (losses, theory):
        for module in pkgutil.iter_modules(package.__path__):
            path = f"{package.__name__}.{module.name}"
            for name, each in vars(importlib.import_module(path)).items():
                if name.startswith("_") or getattr(each, "__module__", "") != path or not callable(each):
                    continue
                called = each.__init__ if inspect.isclass(each) else each
                for argument, kind in get_type_hints(called).items():
                    if get_origin(kind) is Literal:
                        yield name, each, argument, get_args(kind)


CHOICES = list(choices())


def test_all_are_tried():
    assert {name for name, *_ in CHOICES} == set(ARGUMENTS)


@pytest.mark.parametrize(("name", "each", "argument", "allowed"), CHOICES)
def test_a_name_that_is_not_allowed_is_refused(name, each, argument, allowed):
    for value in allowed:
        each(*ARGUMENTS[name], **{argument: value})
    for value in (allowed[0][:-1], "", None, 1):
        with pytest.raises(UsageError) as refused:
            each(*ARGUMENTS[name], **{argument: value})
        assert (refused.value.parameter, refused.value.given) == (argument, value)
