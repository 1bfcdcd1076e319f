import pytest
import torch

from acl_plugin.errors import UsageError
from acl_plugin.losses.sharpness import ascend, sharpness

pytestmark = pytest.mark.numeric


def test_moves_by_rho_along_the_gradient_and_restores_exactly():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    gradients = [torch.randn(3, 2), torch.randn(4)]
    before = [p.detach().clone() for p in parameters]
    with ascend(parameters, gradients, 0.3):
        moved = torch.cat([(p - b).flatten() for p, b in zip(parameters, before, strict=True)])
    along = torch.cat([g.flatten() for g in gradients])
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-5)
    torch.testing.assert_close(moved / 0.3, along / along.norm(), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_worst_case_of_a_linear_loss():
    # max over ||d|| <= rho of w . (theta + d) is w . theta + rho ||w||
    theta, w = torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.tensor([3.0, 4.0])
    with ascend([theta], [w], 0.1):
        assert (w @ theta).item() == pytest.approx(3 - 8 + 0.1 * 5, abs=1e-5)


def test_asam_is_the_loop_over_weights():
    torch.manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(3, 2).double()), torch.nn.Parameter(torch.randn(4).double())]
    gradients = [torch.randn(3, 2).double(), torch.randn(4).double()]
    weights = [w for p in parameters for w in p.flatten().tolist()]
    slopes = [g for each in gradients for g in each.flatten().tolist()]
    length = sum((abs(w) * g) ** 2 for w, g in zip(weights, slopes, strict=True)) ** 0.5
    expected = [w + 0.7 * w**2 * g / length for w, g in zip(weights, slopes, strict=True)]
    before = [p.detach().clone() for p in parameters]
    with ascend(parameters, gradients, 0.7, adaptive=True):
        moved = torch.cat([p.detach().flatten() for p in parameters])
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_asam_reaches_the_worst_case_of_a_linear_loss_and_does_not_depend_on_scale():
    # max over ||d / theta|| <= rho of w . (theta + d) is w . theta + rho || theta w ||
    theta, w = torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.tensor([3.0, 2.0])
    with ascend([theta], [w], 0.1, adaptive=True):
        assert (w @ theta).item() == pytest.approx(3 - 4 + 0.1 * 5, abs=1e-6)
    scaled = torch.nn.Parameter(theta.detach() * torch.tensor([10.0, 0.1]))  # the same function of another weight
    slopes = w / torch.tensor([10.0, 0.1])
    with ascend([scaled], [slopes], 0.1, adaptive=True):
        assert (slopes @ scaled).item() == pytest.approx(3 - 4 + 0.1 * 5, abs=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_negative_radius_is_refused(adaptive):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match="rho -0.5: allowed is a number from 0"), ascend([p], [p.data], -0.5, adaptive):
        pass


def test_restores_after_an_exception_and_takes_missing_and_zero_gradients():
    p, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    with pytest.raises(KeyError), ascend([p, unused], [torch.zeros(2), None], 1.0):
        assert torch.equal(p, torch.ones(2))
        raise KeyError
    assert torch.equal(p, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))


def test_sharpness_of_a_quadratic_and_of_a_linear_loss():
    # max over ||d|| <= rho of ||theta + d||^2 / 2 is (||theta|| + rho)^2 / 2
    theta = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
    plain, worst = sharpness([theta], lambda: theta.square().sum() / 2, 0.5)
    assert (plain, worst) == (pytest.approx(12.5), pytest.approx(5.5**2 / 2, rel=1e-5))
    w = torch.tensor([3.0, 4.0])
    plain, worst = sharpness([theta], lambda: w @ theta, 0.1)
    assert (plain, worst) == (pytest.approx(-7.0), pytest.approx(-7.0 + 0.1 * 5, rel=1e-5))


def test_sharpness_turns_on_the_edge_of_the_ball():
    # a ridge: the best point of the ball is not along the gradient at theta
    theta = torch.nn.Parameter(torch.tensor([0.0, 0.0]))

    def loss():
        return theta[1] + 3 * theta[0] - 10 * theta[0].square()

    _, worst = sharpness([theta], loss, 1.0, steps=200)
    angles = torch.linspace(0, 2 * torch.pi, 10_000)
    edge = torch.sin(angles) + 3 * torch.cos(angles) - 10 * torch.cos(angles).square()
    assert worst <= edge.max().item() + 1e-4
    assert worst > edge.max().item() - 0.2


def test_sharpness_restores_and_leaves_gradients_and_frozen_weights_alone():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    before = [p.detach().clone() for p in layer.parameters()]
    x = torch.randn(5, 3)
    with torch.no_grad():
        plain, worst = sharpness(list(layer.parameters()), lambda: layer(x).square().mean(), 0.3)
    assert worst > plain
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
    assert layer.weight.grad is None
    with pytest.raises(ZeroDivisionError):
        sharpness(list(layer.parameters()), lambda: layer(x).sum() * (1 / 0), 0.3)
    assert torch.equal(layer.weight, before[0])


@pytest.mark.parametrize("options", [{"rho": -1.0}, {"rho": float("nan")}, {"rho": 0.0}, {"rho": 0.1, "steps": 0}])
def test_a_ball_without_radius_or_steps_is_refused(options):
    with pytest.raises(UsageError) as error:
        sharpness([torch.nn.Parameter(torch.ones(2))], lambda: torch.ones(()), **options)
    assert error.value.parameter == ("steps" if "steps" in options else "rho")


def test_weights_that_all_stay_fixed_have_no_sharpness():
    with pytest.raises(UsageError, match="parameters of which some require a gradient"):
        sharpness([torch.nn.Parameter(torch.ones(2), requires_grad=False)], lambda: torch.ones(()), 0.1)
