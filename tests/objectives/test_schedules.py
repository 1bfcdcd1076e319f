import pytest

from acl_plugin.objectives.schedules import staircase

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
