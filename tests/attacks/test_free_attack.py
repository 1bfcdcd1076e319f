"""Free adversarial training against plain loops of its algorithm."""

import pytest
import torch

from acl_plugin import available, create_objective
from acl_plugin.attacks.free_attack import FreeAttack
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import nt_xent
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Views
from conftest import spec

pytestmark = pytest.mark.numeric
THREATS = [ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)]


def two_views(count=4):
    return torch.rand(2, count, 1, 8, 8, dtype=torch.float64).unbind()


def network(banks=("adv",)):
    torch.manual_seed(0)
    return Encoder(spec(), banks).double()


def within(x_adv, x, threat):
    """Return the nearest point in the ball and in [0, 1]; in L2, along the perturbation."""
    apart = x_adv - x
    if threat.norm == "Linf":
        return (x + apart.clamp(-threat.eps, threat.eps)).clamp(0, 1)
    sizes = apart.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x + apart * (threat.eps / sizes).clamp_max(1)).clamp(0, 1)


def by_hand(model, a, b, threat, steps, lr):
    """Algorithm 1 of arXiv 1904.12843 for one batch: gradients of weights and images from one backward pass."""
    x, weights = torch.cat([a, b]), list(model.parameters())
    x_adv = within(x + threat.eps * (2 * torch.rand(x.shape).double() - 1), x, threat)
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = nt_xent(*model.views(*x_adv.chunk(2), "adv"), 0.5)
        *of_weights, of_images = torch.autograd.grad(loss, [*weights, x_adv])
        with torch.no_grad():
            for weight, gradient in zip(weights, of_weights, strict=True):
                weight -= lr * gradient
            sizes = of_images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            step = of_images.sign() if threat.norm == "Linf" else of_images / sizes
            x_adv = within(x_adv + threat.eps * step, x, threat)


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_a_batch_is_trained_on_as_by_hand(threat):
    ours, theirs = network(), network()
    views = Views(*two_views())
    torch.manual_seed(1)
    by_hand(theirs, views.a, views.b, threat, 3, 0.1)
    torch.manual_seed(1)
    attack, objective = FreeAttack(threat, steps=3), create_objective("acl_a2a")
    optimizer, lasts = torch.optim.SGD(ours.parameters(), 0.1), []
    for last in attack.times():
        lasts.append(last)
        optimizer.zero_grad()
        objective.backward(ours, views, attack)
        optimizer.step()
    assert lasts == [False, False, True]
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def attacking():
    return [name for name in available() if name != "gsa_rsl" and getattr(_kind(name), "attack_mode", None)]


def _kind(name):
    from acl_plugin.registry import OBJECTIVES

    return OBJECTIVES.get(name)


ADDONS = [
    {},
    {"sharpen": "all"},
    {"rho": 0.0},
    {"steps": 4},
    {"benign": 0.0},
    {"base": "acl_ds"},
    {"base": "dynacl", "sharpen": "all"},
    {"base": "rocl", "divergence": "mmd"},
]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "own"), [*((name, {}) for name in attacking()), *(("gsa_rsl", own) for own in ADDONS)]
)
@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_every_objective_moves_its_views_within_the_ball(name, own, threat, settings_of, monkeypatch):
    torch.manual_seed(0)
    objective = create_objective(name, **(own or settings_of(name)))
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    objective.on_epoch(9, 10)
    a, b, weak, images = torch.rand(4, 6, 1, 8, 8).unbind()
    views = Views(a, b, images, torch.arange(6), weak)
    attack, seen = FreeAttack(threat, steps=3), []
    optimizer = torch.optim.SGD(objective.param_groups(model), 0.01)
    for _ in attack.times():
        optimizer.zero_grad()
        objective.backward(model, views, attack)
        seen.append([(call.x, call.x_adv.detach().clone(), call.x_adv.grad) for call in attack.batch.calls])
        optimizer.step()
    assert seen[0]
    assert len({len(calls) for calls in seen}) == 1
    for number, calls in enumerate(seen):
        with_gradient = [call for call in calls if call[2] is not None]
        for x, x_adv, gradient in calls:
            torch.testing.assert_close(x_adv, within(x_adv, x, threat), rtol=0, atol=1e-6)
            if gradient is None:  # the views of gsa_rsl's discriminator
                twin = next(each for each in with_gradient if torch.equal(each[0], x))
                assert number == 0 or torch.equal(twin[1], x_adv)
            else:
                assert gradient.isfinite().all()
                assert gradient.any()
    for before, after in zip(seen[0], seen[-1], strict=True):
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])


def test_views_without_a_gradient_and_broken_gradients_stay():
    threat = THREATS[0]
    model, x, found = network(), torch.cat(two_views()), []
    attack = FreeAttack(threat, steps=3)
    for _ in attack.times():
        found.append(torch.cat(attack.pairwise(model, *x.chunk(2), norm_bank="adv")).detach())
        if len(found) == 1:
            attack.batch.calls[0].x_adv.grad = torch.full_like(x, torch.nan)
    for moved in found:
        torch.testing.assert_close(moved, found[0], rtol=0, atol=1e-9)
    assert (found[0] - x).abs().max() <= threat.eps + 1e-9


def test_the_share_of_moved_views_is_told():
    shares = []
    attack = FreeAttack(THREATS[0], steps=2, on_moved=shares.append)
    for _ in attack.times():
        attack.pairwise(network(), *two_views())
    assert [share.item() for share in shares] == [1, 1]


def test_eps_is_scaled():
    attack = FreeAttack(THREATS[0], steps=1).scaled(0.5)
    x = torch.full((4, 1, 8, 8), 0.5)
    for _ in attack.times():
        moved = attack.scalar(network(), x, lambda images: images.flatten(1).sum(1))
        assert 0.04 < (moved - x).abs().max() <= 0.05


def test_batches_are_independent():
    attack, (a, b) = FreeAttack(THREATS[0], steps=2), two_views()
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        with pytest.raises(RuntimeError, match="broken"):
            for _ in attack.times():
                found.append(attack.pairwise(network(), a, b)[0].detach())
                raise RuntimeError("broken")
        assert attack.batch.calls == []
    assert torch.equal(*found)


def test_an_attack_of_its_own_trains_once():
    assert list(InnerAttack(THREATS[0]).times()) == [True]


def test_outside_of_a_batch_it_says_how_to_call_it():
    with pytest.raises(UsageError, match=r"call it in `for _ in attack.times\(\)`"):
        FreeAttack(THREATS[0]).pairwise(network(), *two_views())


@pytest.mark.parametrize(
    ("given", "parameter"), [({"steps": 0}, "steps"), ({"kwargs": {"alpha": 0.1}}, "kwargs"), ({"scale": 1.5}, "scale")]
)
def test_mistakes_are_refused(given, parameter):
    with pytest.raises(UsageError) as error:
        FreeAttack(THREATS[0], **given)
    assert error.value.parameter == parameter
