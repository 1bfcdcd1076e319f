from dataclasses import replace

import pytest
import torch

from acl_plugin.attacks.arguments import _warn_once, class_arguments
from acl_plugin.attacks.catalogue import SQUARE_ONLY, attack_names
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError

THREAT = ThreatModel("Linf", 8 / 255)


def arguments(name, steps=5, scale=1.0, **given):
    return class_arguments(name, given, steps=steps, scale=scale, threat=THREAT, classes=12, seed=7)


@pytest.mark.parametrize(("steps", "size"), [(1, 10), (3, 10 / 3), (5, 2), (7, 2), (20, 2), (100, 2)])
def test_the_step_size_is_a_quarter_of_eps_or_more(steps, size):
    expected = {"eps": 8 / 255, "alpha": pytest.approx(size / 255), "steps": steps}
    assert arguments("PGD", steps=steps) == expected


def test_one_step_of_rfgsm_is_the_published_one():
    """R+FGSM (arXiv 1705.07204, section 4.1): a random step of eps / 2, and a step of the rest along the gradient."""
    assert arguments("RFGSM", steps=1)["alpha"] == pytest.approx(4 / 255)
    assert arguments("RFGSM", steps=5)["alpha"] == pytest.approx(2 / 255)


class Shapes(torch.nn.Module):
    """Linear in the first pixels; it records the shapes of its images."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def forward(self, x):
        self.shapes.add(tuple(x.shape[1:]))
        return x.flatten(1)[:, :10]


@pytest.mark.parametrize("name", SQUARE_ONLY)
def test_images_that_are_no_squares_are_refused_where_they_would_be_padded(name):
    attack, model = InnerAttack(THREAT, name, 2), Shapes()
    with pytest.raises(UsageError, match="takes square images, not 8 x 12") as error:
        attack.classifier(model, torch.rand(2, 3, 8, 12), torch.tensor([0, 1]))
    assert (error.value.parameter, error.value.given) == ("shape", (3, 8, 12))
    assert model.shapes == set()


@pytest.mark.parametrize("name", [name for name in attack_names("Linf") if name not in SQUARE_ONLY])
def test_every_other_class_shows_images_of_their_own_shape(name):
    model = Shapes()
    InnerAttack(THREAT, name, 2).classifier(model, torch.rand(2, 3, 16, 24), torch.tensor([0, 1]))
    assert model.shapes == {(3, 16, 24)}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_many_default_steps_cross_the_ball_from_a_random_start(norm):
    """PGD on a linear model ends at the corner of the ball, wherever it starts; the steps of five would end before."""
    threat = ThreatModel(norm, 0.1)
    w = torch.linspace(-1, 1, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))] + 0.05

    class Linear(torch.nn.Module):
        def forward(self, x):
            score = x.flatten(1) @ w
            return torch.stack([score, -score], 1)

    x, y = torch.full((8, 3, 2, 2), 0.5), torch.zeros(8, dtype=torch.long)
    moved = InnerAttack(threat, threat.pgd, 20).classifier(Linear(), x, y, generator=torch.Generator().manual_seed(0))
    direction = w.sign() if norm == "Linf" else w / w.norm()
    assert torch.allclose(
        (moved - x).flatten(1), (-0.1 * direction).expand(8, -1), atol=1e-4 if norm == "Linf" else 2e-3
    )


def test_a_step_size_that_cannot_cross_the_ball_is_logged(caplog):
    _warn_once.cache_clear()
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 20, {"alpha": 0.00625})
    for _ in range(3):  # as the trainer does in every step
        replace(attack.scaled(1.0), trusted=True)
    (line,) = caplog.messages
    assert (
        "20 steps of 0.00625 cannot cross the eps ball (0.1) from a random start; for evaluation, pass alpha 0.01"
        in line
    )
    caplog.clear()
    for kwargs in ({}, {"alpha": 0.025}, {"alpha": 0.00625, "random_start": False}):
        InnerAttack(ThreatModel("Linf", 0.1), "PGD", 20, kwargs)
    assert not caplog.messages


def test_a_class_of_one_step_takes_one_whole_step():
    assert arguments("FFGSM")["alpha"] == pytest.approx(10 / 255)


def test_the_users_arguments_come_first_and_their_step_size_is_scaled():
    found = arguments("PGD", scale=0.5, alpha=4 / 255, steps=3)
    assert (found["alpha"], found["steps"]) == (2 / 255, 3)
    assert arguments("PGD", random_start=False)["random_start"] is False


def test_steps_seed_and_classes_have_the_names_of_the_class():
    assert (arguments("Square")["n_queries"], arguments("Square")["seed"]) == (5, 7)
    assert arguments("APGDT")["n_classes"] == 10


def test_a_model_without_weights_that_are_known_is_refused():
    with pytest.raises(UsageError, match="`model` is function; allowed is a torch.nn.Module"):
        InnerAttack(THREAT).classifier(lambda x: x.flatten(1), torch.rand(2, 3, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_model_that_hides_its_gradient_is_named(norm):
    class Detached(Shapes):
        def forward(self, x):
            return super().forward(x).detach()

    threat = ThreatModel(norm, 0.1)
    with pytest.raises(UsageError, match="has no gradient with respect to the images") as error:
        InnerAttack(threat, threat.pgd, 2).classifier(Detached(), torch.rand(2, 3, 2, 2), torch.tensor([0, 1]))
    assert error.value.parameter == "model"
