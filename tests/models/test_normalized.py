"""Features of norm 1: in the encoder, its projector, its file, the probe and the stub."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from acl_plugin import load_encoder, wrap_encoder
from acl_plugin.leaderboard.stub import fault, stub
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.spec import ModelSpec, spec_of
from acl_plugin.objectives.base import Objective, Terms
from acl_plugin.probing.protocols import probe
from acl_plugin.runs.models import load_classifier
from acl_plugin.training.pretrain import pretrain
from conftest import spec

pytestmark = pytest.mark.numeric
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pair(kind, *arguments):
    """The same weights, without and with normalized features."""
    plain, normalized = (
        kind(spec(classes="ab"), *arguments).eval(),
        kind(replace(spec(classes="ab"), normalized=True), *arguments).eval(),
    )
    normalized.load_state_dict(plain.state_dict())
    return plain, normalized


def test_features_have_norm_1_before_the_projector():
    plain, normalized = pair(Encoder, ("clean", "adv"), "two_layer")
    features = plain.features(X, "adv")
    expected = torch.stack([row / sum(v**2 for v in row) ** 0.5 for row in features])
    torch.testing.assert_close(normalized.features(X, "adv"), expected)
    torch.testing.assert_close(normalized(X, "adv"), plain.projector(expected))
    torch.testing.assert_close(normalized.views(X, X, "adv")[1], plain.projector(expected))


def test_features_have_norm_1_before_the_head():
    plain, normalized = pair(Classifier)
    features = plain.features(X)
    torch.testing.assert_close(normalized(X), plain.head(features / features.norm(dim=1, keepdim=True)))


def test_a_specification_keeps_it_and_earlier_files_have_none():
    written = replace(spec(), normalized=True).to_dict()
    assert ModelSpec.from_dict(written).normalized
    del written["normalized"]
    assert not ModelSpec.from_dict(written).normalized


def test_a_wrapped_module_has_it_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    plain, normalized = (wrap_encoder(net, (1, 8, 8), normalized=on).eval() for on in (False, True))
    features = plain.features(X)
    torch.testing.assert_close(normalized.features(X), features / features.norm(dim=1, keepdim=True))
    assert spec_of(normalized, (1, 8, 8)).normalized
    assert not spec_of(plain, (1, 8, 8)).normalized


def test_the_stub_has_it_too():
    _, normalized = pair(Classifier)
    code = stub(normalized, "tiny", "digits", "Linf", "0" * 64)
    assert fault(code, normalized, "tiny") is None
    assert fault(code.replace("F.normalize", "torch.sub"), normalized, "tiny") is not None


def assert_unit_norm(features):
    """An image whose features are all 0 after the last ReLU keeps them."""
    norm = features.norm(dim=1)
    torch.testing.assert_close(norm, (norm > 0).to(norm))


@pytest.mark.e2e
def test_a_run_is_probed_with_the_features_that_were_trained(tiny_config, tmp_path, register):
    class Spread(Objective):
        """Spreads features."""

        normalized, attack_mode, needs = True, None, ("a",)

        def terms(self, model, views, attack):
            f = model.features(views.a)
            assert_unit_norm(f)
            return Terms.weighted(spread=(1.0, (f @ f.T).mean()))

    register("spread", Spread)
    config = tiny_config.replace(objective="spread")
    run = pretrain(config, tmp_path / "run")
    encoder = load_encoder(run.path)
    assert encoder.spec.normalized
    assert_unit_norm(encoder.features(X))
    probe(run, config, torch.device("cpu"))
    classifier = load_classifier(run.path)
    torch.testing.assert_close(classifier.features(X), encoder.features(X))
