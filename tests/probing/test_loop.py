import dataclasses
import math

import pytest
import torch
from torch import nn

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.augment import Augmentation
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.loop import Schedule, descend, schedule_of

PLAIN = Schedule(
    epochs=5, batch_size=8, lr=0.1, weight_decay=0.0, milestones=(0.4, 0.8), augmentation=Augmentation("none"), seed=0
)


@pytest.fixture
def images():
    return datasets.load(preset("digits", limit_train=16).data).train


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def test_the_rate_falls_tenfold_after_the_milestones(images):
    """With gradient 1 in all steps, the way is that of SGD with momentum 0.9, written out."""
    model, seen = Weight(), []
    result = descend("test", model, [model.w], images, lambda *_: seen.append(model.w.item()) or model.w.sum(), PLAIN)
    w, buffer = 0.0, 0.0
    for step, position in enumerate(seen):
        assert position == pytest.approx(w, abs=1e-6)
        buffer = 0.9 * buffer + 1
        w -= 0.1 * 0.1 ** ((step // 2 >= 2) + (step // 2 >= 4)) * buffer
    assert len(seen) == 10
    assert result == {"precision": "32-true", "loss": pytest.approx((seen[-1] + seen[-2]) / 2)}


def test_the_cosine_of_gsa_rsl_ends_near_zero(images):
    """Written out as in args/linear.py and utils.py of its code, where epochs count from 1."""
    model, seen = Weight(), []
    schedule = dataclasses.replace(PLAIN, epochs=4, fall="cosine")
    descend("test", model, [model.w], images, lambda *_: seen.append(model.w.item()) or model.w.sum(), schedule)
    w, buffer = 0.0, 0.0
    for step, position in enumerate([*seen, model.w.item()]):
        assert position == pytest.approx(w, abs=1e-6)
        buffer = 0.9 * buffer + 1
        w -= (1e-8 + (0.1 - 1e-8) * (1 + math.cos(math.pi * (step // 2 + 1) / 4)) / 2) * buffer


def test_the_first_of_the_best_epochs_is_kept(images):
    model, scores = Weight(), iter([0.1, 0.7, 0.3, 0.7, 0.2])
    weights = []

    def score():
        weights.append(model.w.item())
        return next(scores)

    result = descend("test", model, [model.w], images, lambda *_: model.w.sum(), PLAIN, score=score)
    assert (result["epoch"], result["score"]) == (2, 0.7)
    assert model.w.item() == weights[1]


def test_order_and_views_are_a_function_of_the_seed(images):
    def seen(seed):
        torch.manual_seed(seed + 7)
        state = torch.get_rng_state()
        model, batches = Weight(), []
        schedule = dataclasses.replace(PLAIN, epochs=2, augmentation=Augmentation("weak"), seed=seed)
        descend("test", model, [model.w], images, lambda *b: batches.append(b) or model.w.sum(), schedule)
        assert torch.equal(state, torch.get_rng_state())
        return batches

    one, same, other = seen(0), seen(0), seen(1)
    assert all(torch.equal(a, b) for x, y in zip(one, same, strict=True) for a, b in zip(x, y, strict=True))
    assert not all(torch.equal(x[2], y[2]) for x, y in zip(one, other, strict=True))
    assert sorted(torch.cat([b[2] for b in one[:2]]).tolist()) == sorted(images.rows.tolist())


def test_streams_of_a_runs_seed_are_apart():
    settings = {
        "epochs": 1,
        "batch_size": 2,
        "lr": 1.0,
        "weight_decay": 0.0,
        "milestones": (),
        "augmentation": Augmentation("none"),
    }
    assert schedule_of(preset().machine, 3, **settings).seed != schedule_of(preset().machine, 4, **settings).seed


class Noisy(nn.Module):
    """A network whose steps depend on everything that a checkpoint has to keep."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def loss(self, x, y):
        return nn.functional.cross_entropy(self.head(self.norm(x.flatten(1) + 0.1 * torch.randn(len(x), 64))), y)


@pytest.mark.parametrize("stopped_at", [1, 5, 6, 9])  # two steps an epoch
def test_a_later_start_resumes_and_ends_the_same_to_the_bit(images, stopped_at, tmp_path, monkeypatch):
    monkeypatch.setattr(ProbeCheckpoints, "often", 0.0)
    schedule = dataclasses.replace(PLAIN, augmentation=Augmentation("weak"))

    def train(folder, stop=None):
        model, steps = Noisy(), 0

        def step(x, y, _):
            nonlocal steps
            if steps == stop:
                raise KeyboardInterrupt
            steps += 1
            return model.loss(x, y)

        def score():  # the second epoch is the best
            return -abs(model.norm.num_batches_tracked.item() - 4)

        checkpoints = ProbeCheckpoints(folder, {"of": "this"})
        result = descend(
            "test", model, model.parameters(), images, step, schedule, score=score, checkpoints=checkpoints
        )
        return result, model.state_dict(), steps

    result, weights, steps = train(tmp_path / "whole")
    assert (result["epoch"], steps) == (2, 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stopped_at)
    again, others, rest = train(tmp_path / "stopped")
    assert rest == 10 - stopped_at
    assert again == result
    assert all(torch.equal(others[k], v) for k, v in weights.items())


@pytest.mark.parametrize(
    ("asked", "kind", "recorded"),
    [
        ("32-true", torch.float32, "32-true"),
        ("bf16-mixed", torch.bfloat16, "bf16-mixed"),
        ("64-true", torch.float32, "32-true"),
    ],
)
def test_networks_multiply_in_the_precision_recorded(images, asked, kind, recorded):
    model, kinds = nn.Linear(64, 10), []

    def step(x, y, _):
        logits = model(x.flatten(1))
        kinds.append(logits.dtype)
        return nn.functional.cross_entropy(logits.float(), y)

    result = descend("test", model, model.parameters(), images, step, dataclasses.replace(PLAIN, precision=asked))
    assert set(kinds) == {kind}
    assert result["precision"] == recorded
    assert model.weight.dtype == torch.float32
