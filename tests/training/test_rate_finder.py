import math

import pytest
import torch

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.objectives.base import Objective, Terms
from acl_plugin.training import rate_finder
from acl_plugin.training.rate_finder import find_rate, steepest
from conftest import OPTIONS, TINY

SMALL = TINY | {"limit_train": 64, "optimizer": "sgd"}


def test_the_steepest_fall_of_a_known_curve():
    """A loss that falls by a sigmoid around 1e-2 on a logarithmic axis, and rises at the end."""
    rates = [10 ** (-5 + 5 * i / 99) for i in range(100)]
    losses = [1 - 0.8 / (1 + math.exp(-8 * (math.log10(rate) + 2))) for rate in rates]
    found = steepest(rates, losses)
    assert 1e-2 <= found <= 2e-2  # the average lags by four steps
    assert steepest(rates[:20], [1.0 + i for i in range(20)]) is None
    assert steepest(rates[:2], [1.0, 0.5]) is None


@pytest.mark.e2e
def test_the_weights_move_with_the_rates_of_the_search_alone(register):
    """The loss of the objective is that of a plain loop of SGD on the mean of the weights."""

    class SumOfWeights(Objective):
        """The mean of all weights, whatever the images."""

        needs, attack_mode, norm_banks = (), None, ("clean",)

        def terms(self, model, views, attack):
            return Terms(torch.cat([p.flatten() for p in model.parameters()]).mean(), {})

    register("sum_of_weights", SumOfWeights)
    config = preset("digits", **SMALL | {"objective": "sum_of_weights", "weight_decay": 0.0})
    found = find_rate(config, steps=10, lowest=0.1, highest=10.0)
    model = rate_finder.build(config, rate_finder.datasets.load(config.data)).model
    start = torch.cat([p.flatten() for p in model.parameters()])
    count, value, speed, expected = len(start), start.mean().item(), 0.0, []
    for rate in found.rates:
        speed = 0.9 * speed + 1 / count
        value -= rate * (1 / count + 0.9 * speed)  # timm's SGD has Nesterov's momentum
        expected.append(value)
    assert found.losses == pytest.approx(expected[: len(found.losses)], abs=1e-5)


@pytest.mark.e2e
def test_a_step_averages_the_gradients_of_as_many_batches_as_training(register):
    seen = []

    class SumOfWeights(Objective):
        """The mean of all weights, whatever the images."""

        needs, attack_mode, norm_banks = (), None, ("clean",)

        def terms(self, model, views, attack):
            seen.append(views.rows)
            return Terms(torch.cat([p.flatten() for p in model.parameters()]).mean(), {})

    register("sum_of_weights", SumOfWeights)
    once = preset("digits", **SMALL | {"objective": "sum_of_weights", "weight_decay": 0.0})
    expected = find_rate(once, steps=10, lowest=0.1, highest=10.0).losses
    before = len(seen)
    found = find_rate(once.replace(accumulate_grad_batches=3), steps=10, lowest=0.1, highest=10.0)
    assert found.losses == pytest.approx(expected, abs=1e-5)
    assert len(seen) - before == before + 2 * len(expected)


@pytest.mark.e2e
def test_a_search_repeats_writes_nothing_and_ends_where_the_loss_diverges(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = preset("digits", **SMALL | {"objective": "acl_ds"})
    one, two = find_rate(config, steps=12), find_rate(config, steps=12)
    assert one == two
    assert one.held_out == 6
    monkeypatch.setattr(rate_finder, "DIVERGED", 0.0)
    assert len(find_rate(config, steps=12).losses) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([-0.01, -0.2, -0.5, -0.9, -0.3, 0.2, 0.9, 0.98, 0.99, 1.0], 10),
        ([0.0001, -0.2, 0.1, 0.2, 0.5, 1.2, 1.3, 1.4, 1.5, 1.6], 6),
        ([-5.0, -6.0, -3.0, 0.1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4),
        ([5.0, 4.0, 3.0, 9.0, 11.0, 2.0, 2.0, 2.0, 2.0, 2.0], 5),
        ([-0.01, math.nan, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2),
    ],
)
def test_a_search_ends_where_the_loss_has_risen_by_its_size(losses, count, monkeypatch):
    values = iter(losses)
    monkeypatch.setattr(rate_finder, "_held_out_loss", lambda *_: next(values))
    found = find_rate(preset("digits", **SMALL | {"objective": "simclr"}), steps=len(losses))
    assert found.losses == pytest.approx(tuple(losses[:count]), nan_ok=True)


@pytest.mark.e2e
def test_the_command_prints_the_curve(capsys):
    given = [option for option in OPTIONS if "limit-train" not in option]
    assert main(["find-rate", *given, "--limit-train=64", "--objective=simclr", "--steps=12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "held-out training images" in lines[0]
    assert "--l" in lines[-1]


SEARCHES = [
    ("steps", 3), ("steps", "60"), ("steps", 12.5), ("lowest", 0.0), ("lowest", "1e-3"), ("highest", 1e-5),
    ("highest", float("inf")), ("highest", float("nan")),
]  # fmt: skip


def test_settings_that_cannot_be_searched_are_refused():
    for name, given in SEARCHES:
        with pytest.raises(UsageError, match=f"`{name}` {given!r}: allowed is a number") as error:
            find_rate(preset("digits", **SMALL), **{name: given})
        assert (error.value.parameter, error.value.given) == (name, given)
    with pytest.raises(UsageError, match="`batch_size` 16: allowed is at most 14, as 2 images"):
        find_rate(preset("digits", **SMALL | {"limit_train": 16, "batch_size": 16}))
    with pytest.raises(UsageError, match="`attack` free: find-rate changes the rate with each step"):
        find_rate(preset("digits", **SMALL | {"attack": "free"}))
