import pytest

from acl_plugin.attacks.arguments import class_arguments
from acl_plugin.attacks.threat_model import ThreatModel

THREAT = ThreatModel("Linf", 8 / 255)


def arguments(name, steps=5, scale=1.0, **given):
    return class_arguments(name, given, steps=steps, scale=scale, threat=THREAT, classes=12, seed=7)


def test_the_step_size_is_5_quarters_of_eps_over_the_steps():
    assert arguments("PGD") == {"eps": 8 / 255, "alpha": pytest.approx(2 / 255), "steps": 5}
    assert arguments("PGD", steps=20)["alpha"] == pytest.approx(0.5 / 255)


def test_a_class_of_one_step_takes_one_whole_step():
    assert arguments("FFGSM")["alpha"] == pytest.approx(10 / 255)


def test_the_users_arguments_come_first_and_their_step_size_is_scaled():
    found = arguments("PGD", scale=0.5, alpha=4 / 255, steps=3)
    assert (found["alpha"], found["steps"]) == (2 / 255, 3)
    assert arguments("PGD", random_start=False)["random_start"] is False


def test_steps_seed_and_classes_have_the_names_of_the_class():
    assert (arguments("Square")["n_queries"], arguments("Square")["seed"]) == (5, 7)
    assert arguments("APGDT")["n_classes"] == 10
