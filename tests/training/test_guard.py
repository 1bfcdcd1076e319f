from types import SimpleNamespace

import pytest
import torch

from acl_plugin.config import preset
from acl_plugin.errors import TrainingStopped
from acl_plugin.losses.contrastive import collapsed_nce
from acl_plugin.training.guard import Guard


def terms(loss, device="cpu", **parts):
    """A loss as if it lay on ``device``."""
    total = SimpleNamespace(device=torch.device(device), detach=lambda: torch.tensor(loss))
    return SimpleNamespace(total=total, parts={name: torch.tensor(value) for name, value in parts.items()})


def guard(**options):
    return Guard(preset("digits", batch_size=8, **options), 0.5)


def test_on_a_cpu_every_step_is_looked_at():
    with pytest.raises(TrainingStopped, match=r"the loss is nan at step 3 \(nce_adv 2\); lower --lr"):
        guard().watch(terms(float("nan"), nce_adv=2.0), 3, 0.1)


def test_on_an_accelerator_steps_are_looked_at_together_and_judged_one_by_one():
    g = guard()
    for step in range(g.seldom - 1):
        g.watch(terms(float("inf") if step == 7 else 1.0, "cuda"), step, 0.1)
    assert g.healthy
    with pytest.raises(TrainingStopped, match="the loss is inf at step 7"):
        g.watch(terms(1.0, "cuda"), g.seldom - 1, 0.1)
    assert not g.healthy


def test_what_was_not_looked_at_is_looked_at_before_a_checkpoint():
    g = guard()
    g.watch(terms(float("nan"), "cuda"), 0, 0.1)
    with pytest.raises(TrainingStopped):
        g.look()
    guard().look()  # nothing to see


@pytest.mark.parametrize("devices", [1, 2])
def test_collapse_is_of_the_joint_batch(devices):
    g, level = guard(devices=devices), collapsed_nce(8 * devices)
    for step in range(g.patience - 1):
        g.watch(terms(1.0, nce_adv=level), step, 0.9)
    with pytest.raises(TrainingStopped, match="collapsed: the loss sits at"):
        g.watch(terms(1.0, nce_adv=level), g.patience, 0.9)
    other = guard(devices=devices)
    for step in range(2 * g.patience):
        other.watch(terms(1.0, nce_adv=collapsed_nce(8 * (3 - devices))), step, 0.9)
    assert other.healthy
