"""One step of each objective, or two, against what its authors' code gave."""

import pytest
import torch

from acl_plugin.registry import create_objective
from golden_cases import Kept, assert_same, left_by, objective_case, teacher_in_float64, views_in_float64
from golden_inputs import GSA_RSL, after_update, digest, gsa_case, outputs, start_from_noise

pytestmark = [pytest.mark.numeric, pytest.mark.e2e]

RELEASED = {"fidelity": "released"}
GOLDEN = outputs("objectives")
CASES = {
    ("acl", "simclr"): {},
    ("acl", "acl_a2a"): {},
    ("acl", "acl_a2s"): {},
    ("acl", "acl_ds"): {},
    ("air", "acl_air"): RELEASED,
    ("air", "dynacl_air"): RELEASED,
    ("rocl", "rocl"): RELEASED,
    ("a_infonce_rocl", "ip"): {"base": "rocl", "variant": "ip"} | RELEASED,
    ("a_infonce_rocl", "hn"): {"base": "rocl", "variant": "hn"} | RELEASED,
    ("a_infonce_rocl", "iphn"): {"base": "rocl", "variant": "iphn"} | RELEASED,
    ("deacl", "deacl"): {"teacher": teacher_in_float64},
    ("profeat", "profeat"): {"teacher": teacher_in_float64},
}
CONSTANT = {"deacl": 3.0, "profeat": 9.0}
"""Of the losses here, which are distances: 1 + beta; the code adds up negative similarities."""


@pytest.mark.parametrize(("code", "case"), CASES)
def test_a_step_is_that_of_the_authors_code(code, case, monkeypatch):
    settings = {key: value() if callable(value) else value for key, value in CASES[code, case].items()}
    objective, model = objective_case("a_infonce" if code == "a_infonce_rocl" else case, **settings)
    objective.on_epoch(500, 1000)
    start_from_noise(monkeypatch)
    attack = Kept()
    terms = objective.backward(model, views_in_float64(), attack)
    images = torch.cat(attack.made) if attack.made else None
    ours = left_by(model, terms.total - CONSTANT.get(case, 0.0), images)
    assert_same(ours, GOLDEN[code][case])


def test_two_updates_of_dynacl_are_those_of_its_code(monkeypatch):
    """The momentum encoder follows the encoder of the step before."""
    objective, model = objective_case("dynacl")
    objective.on_epoch(500, 1000)
    start_from_noise(monkeypatch)
    attack, views = Kept(), views_in_float64()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for theirs in GOLDEN["dynacl"]["dynacl"]:
        optimizer.zero_grad()
        terms = objective.backward(model, views, attack)
        optimizer.step()
        kept = objective.downstream(model)
        ours = left_by(model, terms.total, attack.made.pop())
        del ours["gradients"]
        of_copy = left_by(kept, terms.total)["statistics"]
        ours |= {"weights": digest(model.parameters()), "copy": digest(kept.parameters())}
        assert_same(ours | {"statistics of the copy": of_copy}, theirs)


@pytest.mark.parametrize("variant", ["CLAE", "RoCL", "ACL(DS)", "AdvCL"])
def test_methods_in_the_code_of_gsa_rsl_are_ours_without_its_terms(variant, monkeypatch):
    """Two updates; ``test_gsa_rsl`` compares the same numbers with ``gsa_rsl`` on these bases."""
    _, model, _, views, attack = gsa_case(variant)
    settings = GSA_RSL[variant]
    objective = create_objective(settings["base"], **settings["base_kwargs"])
    objective.setup(model)
    optimizer = torch.optim.SGD(objective.param_groups(model), lr=0.5, momentum=0.9, weight_decay=1e-4)
    start_from_noise(monkeypatch)
    for theirs in outputs("gsa_rsl")[variant]:
        optimizer.zero_grad()
        objective.backward(model, views, attack)
        optimizer.step()
        assert_same(after_update(model, None), theirs)
