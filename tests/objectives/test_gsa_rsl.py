"""GSA-RSL: its authors' code, plain formulas, and what it adds to every objective with an inner attack."""

import copy
import math

import pytest
import torch
from torch import nn

import reference
from acl_plugin import available, create_objective
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.recording import RecordingEncoder
from conftest import spec
from golden_inputs import GSA_RSL, after_update, gsa_case, outputs, start_from_noise

pytestmark = pytest.mark.numeric


@pytest.mark.e2e
@pytest.mark.parametrize("variant", GSA_RSL)
def test_two_updates_are_those_of_the_authors_code(monkeypatch, variant):
    objective, model, optimizer, views, attack = gsa_case(variant)
    start_from_noise(monkeypatch)
    for theirs in outputs("gsa_rsl")[variant]:
        optimizer.zero_grad()
        objective.backward(model, views, attack)
        optimizer.step()
        ours = after_update(model, objective.divergence.network if objective.global_ else None)
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            pair = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, theirs[key]))
            torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
