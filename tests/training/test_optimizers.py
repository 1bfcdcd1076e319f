"""Optimizers of timm by name, and gradients that are clipped."""

import pytest
import torch

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.config.published_pretrainings import PRETRAININGS
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.training import module
from acl_plugin.training.build import build
from acl_plugin.training.optimizer import create_optimizer
from acl_plugin.training.pretrain import pretrain
from conftest import OPTIONS, TINY

SMALL = TINY | {"objective": "simclr", "epochs": 1}


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["nadamw", "rmsprop", "adafactor", "madgrad", "lookahead_adamw", "sgd"])
def test_any_optimizer_of_timm_trains(name, tmp_path):
    config = preset("digits", **SMALL, optimizer=name, lr=1e-3)
    before = build(config, datasets.load(config.data)).model.backbone.state_dict()
    run = pretrain(config, tmp_path / "run")
    from acl_plugin import load_encoder

    after = load_encoder(run.path).backbone.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items() if value.dim() > 1)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("row", [row for row in PRETRAININGS if "optimizer" in row.options], ids=str)
def test_published_runs_have_the_plain_momentum_of_their_code(row):
    settings = preset(row.data, optimizer=row.options["optimizer"]).training
    optimizer = create_optimizer(settings, [{"params": [torch.nn.Parameter(torch.ones(1))]}], None)
    assert not optimizer.defaults.get("nesterov", False)
    assert optimizer.defaults["momentum"] == 0.9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamm", "unknown `optimizer` 'adamm'; the nearest: adamw"),
        ("adahessian", "second derivatives"),
        ("", "unknown"),
    ],
)
def test_other_names_are_refused_in_one_line(name, message, tmp_path, capsys):
    with pytest.raises(UsageError, match=message) as error:
        preset("digits", optimizer=name)
    assert error.value.parameter == "optimizer"
    assert main(["pretrain", "--out", str(tmp_path / "run"), *OPTIONS, f"--optimizer={name}"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("every", [1, 2])
def test_the_gradient_of_a_step_is_clipped_as_a_whole(every, tmp_path, monkeypatch):
    clip, seen = torch.nn.utils.clip_grad_norm_, []

    def recorded(weights, largest):
        norm = clip(weights, largest)
        total = torch.stack([p.grad.norm() for p in weights if p.grad is not None]).norm()
        seen.append((norm.item(), total.item(), len(weights)))
        return norm

    monkeypatch.setattr(module.torch.nn.utils, "clip_grad_norm_", recorded)
    config = preset("digits", **SMALL, clip_grad_norm=0.01, accumulate_grad_batches=every)
    pretrain(config, tmp_path / "run")
    assert len(seen) == 2 // every
    model = build(config, datasets.load(config.data)).model
    for before, after, count in seen:
        assert before > 0.01
        assert after == pytest.approx(0.01, rel=1e-3)
        assert count == len(list(model.parameters()))


@pytest.mark.e2e
def test_without_it_nothing_changes(tmp_path):
    one = pretrain(preset("digits", **SMALL), tmp_path / "one")
    other = pretrain(preset("digits", **SMALL, clip_grad_norm=1e9), tmp_path / "other")
    assert one.encoder_file.read_bytes() == other.encoder_file.read_bytes()
