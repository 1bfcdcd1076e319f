import dataclasses
import shutil

import pytest
import torch

from acl_plugin import load_classifier
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.features import cluster, features_of
from acl_plugin.probing import lpaft
from acl_plugin.probing.held_out import checked
from acl_plugin.probing.protocols import encoder_banks, probe
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder
from acl_plugin.runtime.files import read_json
from conftest import TINY

CPU = torch.device("cpu")


@pytest.fixture
def run(two_banks_run, tmp_path):
    own = {"objective": "acl_ds", "limit_train": 40, "aft_batch_size": 20, "probe_batch_size": 20, "aft_epochs": 1}
    config = preset("digits").replace(**TINY | own)  # a preset refuses aft_... without LP-AFT
    return RunDir(shutil.copytree(two_banks_run, tmp_path / "run")), config


def finetune(folder, config, data):
    """The weights after LP-AFT, by norm bank, and its record."""
    return lpaft.finetune(encoder_banks(folder), load_encoder(folder.path).spec, config, data, CPU)


@pytest.mark.e2e
@pytest.mark.parametrize(("lpaft", "protocol"), [("dynacl", "slf"), ("air", "aff_trades"), ("dynacl", "semi")])
def test_released_lpaft_finetunes_the_encoder_and_probes_it(run, lpaft, protocol):
    folder, config = run
    config = config.replace(lpaft=lpaft, probe_protocol=protocol, aft_fidelity="released")
    before = folder.encoder_file.read_bytes()
    state = torch.get_rng_state()
    probe(folder, config, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert folder.encoder_file.read_bytes() == before
    first = load_classifier(folder.path).state_dict()
    pretrained = load_encoder(folder.path).backbone.state_dict()
    assert any(not torch.equal(first[f"backbone.{k}"], v) for k, v in pretrained.items())
    record = read_json(folder.probe_file)
    assert (record["protocol"], record["aft_clusters"], record["aft_fidelity"]) == (protocol, 10, "released")
    assert record["aft_loss"] > 0
    written = folder.classifier_file.stat().st_mtime_ns
    probe(folder, config, CPU)  # the same again, with the numbers that it has by default
    probe(folder, config.replace(aft_clusters=10), CPU)
    assert folder.classifier_file.stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="aft_clusters 9, there 10"):
        probe(folder, config.replace(aft_clusters=9), CPU)


@pytest.mark.e2e
def test_no_label_is_used(run, monkeypatch):
    folder, config = run
    config = config.replace(lpaft="dynacl")
    images = datasets.load(config.data)
    weights, _ = finetune(folder, config, images)
    scrambled = dataclasses.replace(images, train=dataclasses.replace(images.train, labels=images.train.labels.flip(0)))
    other, _ = finetune(folder, config, scrambled)
    assert all(torch.equal(v, other["adv"][k]) for k, v in weights["adv"].items())


@pytest.mark.e2e
def test_clusters_are_of_the_benign_bank(run, monkeypatch):
    folder, config = run
    seen = []
    monkeypatch.setattr(lpaft, "cluster", lambda f, k, s: seen.append(f) or cluster(f, k, s))
    finetune(folder, config.replace(lpaft="air"), datasets.load(config.data))
    images = datasets.load(config.data).train
    benign, adversarial = (features_of(load_encoder(folder.path, benign=bank), images) for bank in (True, False))
    torch.testing.assert_close(seen[0], benign, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0], adversarial, rtol=1e-2, atol=1e-2)


@pytest.mark.e2e
def test_released_air_attacks_from_the_benign_bank(run, monkeypatch):
    folder, config = run
    targets = []
    original = InnerAttack.trades

    def trades(attack, model, x, logits, target):
        targets.append((model, x, target))
        return original(attack, model, x, logits, target)

    monkeypatch.setattr(InnerAttack, "trades", trades)
    config = config.replace(lpaft="air", aft_fidelity="released", aft_lr=0.0)
    weights, _ = finetune(folder, config, datasets.load(config.data))
    model, x, target = targets[0]
    with torch.no_grad(), norm_banks.inference(model), norm_banks.active(model.backbone, "clean"):
        torch.testing.assert_close(model(x), target)
    encoder = load_encoder(folder.path)  # at rate 0 the convolutions and the bank's affine parameters stay
    assert isinstance(encoder, Encoder)
    for key, value in encoder.backbone.named_parameters():
        torch.testing.assert_close(weights["adv"][key], value.detach())


@pytest.mark.e2e
def test_l2_is_refused(run):
    folder, config = run
    with pytest.raises(UsageError, match="attack 'TPGD' is not for L2"):
        probe(folder, config.replace(lpaft="dynacl", norm="L2", eps=0.5), CPU)
    assert not RunDir(folder.path).classifier_file.exists()


@pytest.mark.e2e
def test_the_benign_bank_keeps_its_norms_and_has_the_new_weights(run):
    folder, config = run
    before = encoder_banks(folder)
    after, record = finetune(
        folder, config.replace(lpaft="dynacl", aft_clusters=3, aft_outputs=7), datasets.load(config.data)
    )
    assert (record["aft_clusters"], record["aft_outputs"]) == (3, 7)
    for key, value in before["clean"].items():
        of_norm = torch.equal(value, before["clean"][key]) and not torch.equal(value, before["adv"][key])
        if of_norm:
            assert torch.equal(after["clean"][key], value)
        elif value.ndim > 1:
            assert torch.equal(after["clean"][key], after["adv"][key])
    weights = [key for key, value in before["adv"].items() if value.ndim > 1]
    assert any(not torch.equal(after["adv"][key], before["adv"][key]) for key in weights)


@pytest.mark.parametrize("clusters", [1, 17, 50])
def test_more_clusters_than_images_are_refused_before_the_pretraining(clusters):
    config = preset("digits", limit_train=16, lpaft="dynacl")
    data = datasets.load(config.data)
    checked(data, config.replace(aft_clusters=16))
    with pytest.raises(UsageError, match=f"`aft_clusters` {clusters}: allowed is 2 to 16, the number of imag") as error:
        checked(data, config.replace(aft_clusters=clusters))
    assert error.value.parameter == "aft_clusters"


def test_unlabeled_images_are_clustered_too(run, tmp_path):
    """They are read at the finetuning, which refuses before it trains."""
    folder, config = run
    data = datasets.load(config.data)
    data = dataclasses.replace(data, unlabeled=lambda: data.test.take(torch.arange(3)))
    config = config.replace(lpaft="dynacl", aft_clusters=44)
    checked(data, config)
    with pytest.raises(UsageError, match="`aft_clusters` 44: allowed is 2 to 43"):
        finetune(folder, config, data)
