"""Every loss of two batches or more refuses batches that do not belong together."""

import importlib
import inspect
import pkgutil

import pytest
import torch

from acl_plugin import losses
from acl_plugin.errors import UsageError
from acl_plugin.losses.divergences import DIVERGENCES
from acl_plugin.losses.embeddings import check_embeddings

PAIRS = [("za", "zb"), ("x", "y"), ("u", "v")]
"""Names of the arguments of functions that compare row i of one batch with row i of another."""


def functions():
    for module in pkgutil.iter_modules(losses.__path__):
        for name, each in vars(importlib.import_module(f"acl_plugin.losses.{module.name}")).items():
            own = inspect.isfunction(each) and each.__module__ == f"acl_plugin.losses.{module.name}"
            if own and not name.startswith("_"):
                yield name, each


LOSSES = {name: each for name, each in functions() if tuple(inspect.signature(each).parameters)[:2] in PAIRS}
OTHERS = {"weighted_nce": {"temperature": 0.5, "scale": 1.0, "weights": None}}
"""Further arguments of functions that take a sequence of views."""


def of_sequence(loss, name):
    return lambda za, zb: loss([za, zb], **OTHERS.get(name, {}))


def is_of_sequence(loss):
    return next(iter(inspect.signature(loss).parameters)) == "views"


LOSSES |= {name: of_sequence(each, name) for name, each in functions() if is_of_sequence(each)}
PAIRED = {
    f"{name}.{way}": lambda za, zb, name=name, way=way: getattr(DIVERGENCES[name](4), way)(za, zb)
    for name in ("mmd", "sliced_wasserstein")
    for way in ("forward", "adversarial_rows")
}
TWO = {"nt_xent", "nt_xent_rows", "multi_view_nce", "multi_view_nce_rows", "barlow_twins_terms", "vicreg_terms"}


def test_the_losses_are_found():
    assert {"nt_xent", "squared_distance_rows", "log_batch_softmax", "vicreg_terms", "multi_view_nce"} <= set(LOSSES)
    assert set(LOSSES) >= TWO


@pytest.mark.parametrize("name", [*LOSSES, *PAIRED])
@pytest.mark.parametrize(
    "other", [torch.rand(4, 4), torch.rand(6, 3), torch.rand(1, 4), torch.rand(6), torch.ones(6, 4, dtype=torch.long)]
)
def test_batches_of_different_shapes_are_refused(name, other):
    loss = (LOSSES | PAIRED)[name]
    loss(torch.rand(6, 4), torch.rand(6, 4))
    for pair in [(torch.rand(6, 4), other), (other, torch.rand(6, 4))]:
        with pytest.raises(UsageError, match="allowed|row i of both") as refused:
            loss(*pair)
        assert "\n" not in str(refused.value)
        assert refused.value.parameter


@pytest.mark.parametrize("name", [*sorted(TWO), "mmd.forward", "mmd.adversarial_rows"])
def test_one_image_is_refused_where_images_are_compared(name):
    with pytest.raises(UsageError, match="at least 2"):
        (LOSSES | PAIRED)[name](torch.rand(1, 4), torch.rand(1, 4))


def test_anything_but_embeddings_is_refused():
    for wrong in (None, [[1.0]], torch.rand(2), torch.ones(2, 2, dtype=torch.int32)):
        with pytest.raises(UsageError, match="z .*floats"):
            check_embeddings(z=wrong)
    check_embeddings(3, a=torch.rand(3, 2), b=torch.rand(3, 2, dtype=torch.float64))
