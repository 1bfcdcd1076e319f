"""The contract: everything that is registered trains in a bare loop and in our trainer."""

import dataclasses

import pytest
import torch

from acl_plugin import UsageError, available, create_objective
from acl_plugin.backbones import Encoder
from acl_plugin.inner_attack import ALL_VIEWS
from acl_plugin.objective import Objective, Terms, Views, require_not_negative, require_positive
from acl_plugin.run_dir import read_model
from acl_plugin.trainer import pretrain
from conftest import spec


@pytest.mark.parametrize("name", available())
def test_bare_loop(name, attack):
    torch.manual_seed(0)
    objective = create_objective(name)
    model = Encoder(spec(), objective.routes)
    objective.setup(model)
    optimizer = torch.optim.AdamW(objective.param_groups(model), lr=1e-3)
    start = [p.detach().clone() for p in model.parameters()]
    for epoch in range(2):
        objective.on_epoch(epoch, 2)
        images, rows = torch.rand(6, 1, 8, 8), torch.arange(6)
        views = Views(images, images.flip(3), images, rows)
        optimizer.zero_grad()
        terms = objective.backward(model, views, attack)
        optimizer.step()
        assert terms.total.isfinite()
        assert terms.parts
        assert all(part.isfinite() and not part.requires_grad for part in terms.parts.values())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    assert objective.attack_view in (None, *ALL_VIEWS)
    assert objective.paper
    assert type(objective).__doc__


@pytest.mark.parametrize("name", available())
def test_in_the_trainer(name, tiny_config, tmp_path):
    run = pretrain(dataclasses.replace(tiny_config, objective=name), tmp_path / "run")
    _, weights = read_model(run.encoder)
    assert weights
    assert all(w.isfinite().all() for w in weights.values())
    assert not any("banks" in key or "projector" in key for key in weights)
    assert len(run.metrics.read_text().splitlines()) == 1 + tiny_config.epochs


@pytest.mark.parametrize("name", available())
def test_state_dict_completes_a_checkpoint(name, attack):
    """A second objective with the first one's state takes the same next step, to the bit."""

    def step(objective, model):
        torch.manual_seed(7)
        images = torch.rand(6, 1, 8, 8)
        model.zero_grad()
        objective.backward(model, Views(images, images.flip(2), images, torch.arange(6)), attack)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    one, model = create_objective(name), None
    torch.manual_seed(0)
    model = Encoder(spec(), one.routes)
    one.setup(model)
    step(one, model)
    torch.manual_seed(1)
    two, twin = create_objective(name), Encoder(spec(), one.routes)
    two.setup(twin)
    two.load_state_dict(one.state_dict())
    twin.load_state_dict(model.state_dict())
    assert all(torch.equal(g, h) for g, h in zip(step(one, model), step(two, twin), strict=True))


def test_terms_weighted():
    x = torch.tensor(2.0, requires_grad=True)
    terms = Terms.weighted(one=(0.5, x), two=(3.0, x * x))
    assert terms.total.item() == 13.0
    terms.total.backward()
    assert x.grad == 0.5 + 3 * 4
    assert {k: v.item() for k, v in terms.parts.items()} == {"one": 2.0, "two": 4.0}


def test_terms_must_be_written():
    with pytest.raises(NotImplementedError):
        Objective().terms(None, None, None)


def test_ranges():
    require_positive(a=1)
    require_not_negative(a=0)
    for bad in (float("nan"), float("inf"), -1, "x", None):
        with pytest.raises(UsageError, match="weight"):
            require_positive(weight=bad)
        with pytest.raises(UsageError, match="weight"):
            require_not_negative(weight=bad)
