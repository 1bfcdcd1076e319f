import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from acl_plugin import data, load_classifier, lpaft, routed_norm
from acl_plugin.backbones import Classifier, Encoder
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import InnerAttack, ThreatModel
from acl_plugin.probe import probe
from acl_plugin.pseudo_labels import cluster, features_of
from acl_plugin.run_dir import RunDir, load_encoder, read_json
from acl_plugin.trainer import pretrain
from conftest import spec

CPU = torch.device("cpu")


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    model = Classifier(spec(classes="012"))
    model.train()
    for _ in range(3):
        model(torch.rand(8, 1, 8, 8))
    return model


@pytest.fixture
def tpgd():
    return InnerAttack(ThreatModel("Linf", 0.1), "TPGD", 10, {"alpha": 0.025})


def test_a_step_is_trades(classifier, tpgd):
    """Cross-entropy and six times the divergence, with gradients through both, against a plain double loop."""
    torch.manual_seed(1)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    twin = copy.deepcopy(classifier)
    loss = lpaft.trades_step(classifier, x, y, tpgd)
    loss.backward()
    twin.eval()
    with torch.no_grad():
        target = twin(x)
    moved = tpgd.trades(twin, x, twin, target)
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    twin.train()
    p, q = twin(x).softmax(1), twin(moved).softmax(1)
    expected = 0.0
    for i in range(4):
        expected = expected - torch.log(p[i, y[i]]) / 4
        expected = expected + 6 / 4 * sum(p[i, c] * (torch.log(p[i, c]) - torch.log(q[i, c])) for c in range(3))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(classifier.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_the_attack_is_torchattacks_and_changes_nothing(classifier, tpgd):
    import torchattacks

    classifier.eval()
    x = torch.rand(4, 1, 8, 8)
    before = copy.deepcopy(classifier.state_dict())
    state = torch.get_rng_state()
    moved = tpgd.trades(classifier, x, classifier, classifier(x).detach())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    from acl_plugin import randomness
    from acl_plugin.inner_attack import _noise_seed

    with randomness.private(_noise_seed(x.device)):
        theirs = torchattacks.TPGD(classifier, eps=0.1, alpha=0.025, steps=10)(x, None)
    assert torch.equal(moved, theirs)

    def divergence(images):
        return F.kl_div(classifier(images).log_softmax(1), classifier(x).log_softmax(1), log_target=True)

    assert divergence(moved) > divergence(x) + 1e-6


def test_released_dynacl_starts_at_the_image(classifier):
    """Its first step follows the sign of rounding, so a single step of it moves some pixels and others not."""
    classifier.eval()
    x = torch.rand(4, 1, 8, 8)
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 10, {"alpha": 0.025, "random_start": False})
    moved = attack.trades(classifier, x, classifier, classifier(x).detach())
    again = attack.trades(classifier, x, classifier, classifier(x).detach())
    assert torch.equal(moved, again)  # no noise
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    gradient = torch.autograd.grad(
        F.cross_entropy(classifier(x.requires_grad_()), classifier(x.detach()).softmax(1).detach()), x
    )[0]
    assert gradient.abs().max() < 1e-6


def test_cost_of_a_step_is_27_forwards(classifier, tpgd, monkeypatch):
    counts = {"forwards": 0, "backwards": 0}
    original = Classifier.features

    def features(model, x):
        f = original(model, x)
        counts["forwards"] += len(x)
        if f.requires_grad:
            weights = any(p.requires_grad for p in model.backbone.parameters())
            f.register_hook(lambda _: counts.update(backwards=counts["backwards"] + len(x) * (2 if weights else 1)))
        return f

    monkeypatch.setattr(Classifier, "features", features)
    lpaft.trades_step(classifier, torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), tpgd).backward()
    assert (counts["forwards"] + counts["backwards"]) / 4 == 27


@pytest.fixture
def run(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, objective="acl_ds", aft_epochs=1, limit_train=24)
    return pretrain(config, tmp_path / "run"), config


@pytest.mark.parametrize("protocol", ["dynacl++", "air++"])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_protocols_finetune_the_encoder_and_probe_it(run, protocol, fidelity):
    folder, config = run
    config = dataclasses.replace(config, probe_protocol=protocol, aft_fidelity=fidelity)
    before = folder.encoder.read_bytes()
    state = torch.get_rng_state()
    probe(folder, config, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert folder.encoder.read_bytes() == before
    first = load_classifier(folder.path).state_dict()
    pretrained = load_encoder(folder.path).backbone.state_dict()
    assert any(not torch.equal(first[f"backbone.{k}"], v) for k, v in pretrained.items())
    record = read_json(folder.probe)
    assert (record["protocol"], record["aft_clusters"], record["aft_fidelity"]) == (protocol, 10, fidelity)
    assert record["aft_loss"] > 0
    probe(folder, config, CPU)
    assert all(torch.equal(v, first[k]) for k, v in load_classifier(folder.path).state_dict().items())


def test_no_label_is_used(run, monkeypatch):
    folder, config = run
    config = dataclasses.replace(config, probe_protocol="dynacl++")
    images = data.load(config)
    weights, _ = lpaft.finetune(folder, config, images, CPU)
    scrambled = dataclasses.replace(images, train=dataclasses.replace(images.train, labels=images.train.labels.flip(0)))
    other, _ = lpaft.finetune(folder, config, scrambled, CPU)
    assert all(torch.equal(v, other[k]) for k, v in weights.items())


def test_clusters_are_of_the_benign_bank(run, monkeypatch):
    folder, config = run
    seen = []
    monkeypatch.setattr(lpaft.pseudo_labels, "cluster", lambda f, k, s: seen.append(f) or cluster(f, k, s))
    lpaft.finetune(folder, dataclasses.replace(config, probe_protocol="air++"), data.load(config), CPU)
    images = data.load(config).train
    assert torch.equal(seen[0], features_of(load_encoder(folder.path, benign=True), images))
    assert not torch.allclose(seen[0], features_of(load_encoder(folder.path), images))


def test_released_air_attacks_from_the_benign_bank(run, monkeypatch):
    folder, config = run
    targets = []
    original = InnerAttack.trades

    def trades(attack, model, x, logits, target):
        targets.append((model, x, target))
        return original(attack, model, x, logits, target)

    monkeypatch.setattr(InnerAttack, "trades", trades)
    config = dataclasses.replace(config, probe_protocol="air++", aft_fidelity="released", aft_lr=0.0)
    weights, _ = lpaft.finetune(folder, config, data.load(config), CPU)
    model, x, target = targets[0]
    with torch.no_grad(), routed_norm.inference(model), routed_norm.route(model.backbone, "clean"):
        torch.testing.assert_close(model(x), target)
    encoder = load_encoder(folder.path)  # at rate 0 the convolutions and the bank's affine parameters stay
    assert isinstance(encoder, Encoder)
    for key, value in encoder.backbone.named_parameters():
        torch.testing.assert_close(weights[key], value.detach())


def test_l2_is_refused(run):
    folder, config = run
    with pytest.raises(UsageError, match="attack 'TPGD' is not for L2"):
        probe(folder, dataclasses.replace(config, probe_protocol="dynacl++", norm="L2", eps=0.5), CPU)
    assert not RunDir(folder.path).classifier.exists()
