import math

import pytest

from acl_plugin.objectives.schedules import staircase, warmup_then_cosine

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("epoch", "epochs", "expected"),
    [(0, 1000, 0.0), (49, 1000, 0.0), (50, 1000, 0.05), (999, 1000, 0.95), (1000, 1000, 1.0), (7, 32, 6 / 32)],
)
def test_staircase_changes_in_twenty_steps(epoch, epochs, expected):
    assert staircase(epoch, epochs) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 19, 20, 33, 1000])
def test_staircase_rises_within_the_unit_interval(epochs):
    values = [staircase(epoch, epochs) for epoch in range(epochs + 1)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] <= 1


def test_warm_up_per_step_and_cosine_per_epoch():
    """The released rates: a line from 1e-8 to the cosine's value at epoch 10, then one value an epoch."""

    def cosine(epoch):
        return 1e-8 + (0.5 - 1e-8) * (1 + math.cos(math.pi * epoch / 500)) / 2

    rates = {position: warmup_then_cosine(position, 500, 0.5) for position in (0, 0.25, 7.5, 10, 10.9, 250.3, 500)}
    assert rates[0] == 1e-8
    for position in (0.25, 7.5):
        assert rates[position] == pytest.approx(1e-8 + position / 10 * (cosine(10) - 1e-8), rel=1e-12)
    assert rates[10] == rates[10.9] == pytest.approx(cosine(10), rel=1e-12)
    assert rates[250.3] == pytest.approx(0.25, rel=1e-6)
    assert rates[500] == pytest.approx(1e-8, rel=1e-6)


@pytest.mark.parametrize("epochs", [1, 5, 10])
def test_a_training_as_short_as_the_warm_up_reaches_the_peak(epochs):
    assert warmup_then_cosine(epochs - 1e-9, epochs, 0.5) == pytest.approx(0.5)
    assert warmup_then_cosine(epochs / 2, epochs, 0.5) == pytest.approx(0.25, rel=1e-6)
    assert warmup_then_cosine(0, epochs, 0.5, warmup=0) == pytest.approx(0.5)
