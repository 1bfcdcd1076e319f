import dataclasses
import json

import pytest
import torch

from acl_plugin import data, load_classifier
from acl_plugin.backbones import Classifier
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.linear_head import predictions, train_head
from acl_plugin.probe import probe
from acl_plugin.run_dir import RunDir, write_model
from conftest import TINY, spec

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path):
    """A run folder with a random encoder."""
    torch.manual_seed(0)
    folder = RunDir(tmp_path / "run")
    folder.start(preset("digits"))
    encoder = Classifier(spec(classes="0"))
    for _ in range(20):  # statistics
        encoder.features(data.load(preset("digits", limit_train=64)).train.floats())
    write_model(folder.encoder, spec(), encoder.backbone.state_dict())
    return folder


def test_backbone_is_left_as_it_is_to_the_bit(tiny_config):
    images = data.load(tiny_config).train
    model = Classifier(spec(classes="0123456789"))
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    train_head(model.train(), images, tiny_config)
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_first_step_from_a_zero_head_is_softmax_regressions():
    config = preset("digits", **TINY | {"probe_epochs": 1, "probe_batch_size": 16, "probe_lr": 0.5})
    images = data.load(config).train
    model = Classifier(spec(classes="0123456789")).eval()
    with torch.no_grad():
        features = model.features(images.floats())
    train_head(model, images, config)
    # d/dW of the mean cross-entropy at W = 0: (1/10 - onehot)^T features / n
    residual = 0.1 - torch.nn.functional.one_hot(images.labels, 10).float()
    torch.testing.assert_close(model.head.weight.data, -0.5 * residual.T @ features / 16, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.head.bias.data, -0.5 * residual.mean(0), atol=1e-5, rtol=1e-4)


def test_probe_learns_and_writes_what_it_did(run):
    config = preset("digits", **TINY | {"limit_train": 400, "probe_epochs": 40, "probe_lr": 3.0})
    probe(run, config, CPU)
    record = json.loads(run.probe.read_text())
    model = load_classifier(run.path)
    images = data.load(config).train
    assert record["train_accuracy"] == (predictions(model, images) == images.labels).double().mean().item()
    assert record["train_accuracy"] > 0.2  # of ten classes, with eight random features
    assert (record["protocol"], record["probe_lr"], record["n"]) == ("slf", 3.0, 400)
    assert model.spec.classes == tuple("0123456789")


@pytest.mark.parametrize("augment", ["none", "weak"])
def test_probe_is_a_function_of_the_seed(run, augment, tiny_config):
    config = dataclasses.replace(tiny_config, probe_augment=augment)

    def head(seed):
        state = torch.get_rng_state()
        probe(run, dataclasses.replace(config, seed=seed), CPU)
        assert torch.equal(state, torch.get_rng_state())
        return load_classifier(run.path).head.weight

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


def test_without_an_encoder_the_command_to_run_is_named(tmp_path):
    folder = RunDir(tmp_path / "empty")
    folder.start(preset("digits"))
    with pytest.raises(UsageError, match=r"encoder.pt is missing; run first: acl-plugin pretrain --out .*empty"):
        probe(folder, preset("digits"), CPU)
