import math
from types import SimpleNamespace

import pytest
import torch

from acl_plugin.config import preset
from acl_plugin.errors import TrainingStopped
from acl_plugin.objectives.base import Terms
from acl_plugin.training.guard import Guard


def terms(loss, device="cpu", collapsed=None, **parts):
    """A loss as if it lay on ``device``."""
    total = SimpleNamespace(device=torch.device(device), detach=lambda: torch.tensor(loss))
    return Terms(total, {name: torch.tensor(value) for name, value in parts.items()}, collapsed or {})


def guard(**options):
    config = preset("digits", batch_size=8, **options)
    return Guard(config.training, config.objective.eps_ramp, 0.5)


def test_on_a_cpu_every_step_is_checked():
    with pytest.raises(TrainingStopped, match=r"the loss is nan at step 3 \(nce_adv 2\); lower --lr"):
        guard().watch(terms(float("nan"), nce_adv=2.0), 3, 0.1)


def test_on_an_accelerator_steps_are_checked_together_and_judged_one_by_one():
    g = guard()
    for step in range(g.seldom - 1):
        g.watch(terms(float("inf") if step == 7 else 1.0, "cuda"), step, 0.1)
    assert g.healthy
    with pytest.raises(TrainingStopped, match="the loss is inf at step 7"):
        g.watch(terms(1.0, "cuda"), g.seldom - 1, 0.1)
    assert not g.healthy


def test_what_was_not_checked_is_checked_before_a_checkpoint():
    g = guard()
    g.watch(terms(float("nan"), "cuda"), 0, 0.1)
    with pytest.raises(TrainingStopped):
        g.look()
    guard().look()  # nothing to see


@pytest.mark.parametrize("level", [2.7, 0.0])
def test_a_part_that_stays_at_its_collapsed_value_ends_the_run(level):
    g = guard()
    for step in range(g.patience - 1):
        g.watch(terms(1.0, collapsed={"spread": level}, spread=level + 1e-4, other=3.0), step, 0.9)
    with pytest.raises(TrainingStopped, match=r"collapsed: spread is .* at step 20, as for equal embeddings"):
        g.watch(terms(1.0, collapsed={"spread": level}, spread=level), g.patience, 0.9)


def test_parts_without_a_collapsed_value_are_not_watched_whatever_their_name():
    g = guard()
    for step in range(2 * g.patience):
        g.watch(terms(1.0, nce_adv=math.log(15)), step, 0.9)
    assert g.healthy


def test_a_level_of_a_part_that_a_step_does_not_have_is_left_alone():
    g = guard()
    for step in range(2 * g.patience):
        g.watch(terms(1.0, collapsed={"nce_adv": 1.0}), step, 0.9)
    assert g.healthy
