import dataclasses
import hashlib
import json
import shutil

import numpy
import pytest
import torch

from acl_plugin import load_classifier, load_encoder
from acl_plugin.config import preset
from acl_plugin.config.unused import SOLVED
from acl_plugin.data import datasets
from acl_plugin.data.subsets import read_rows
from acl_plugin.errors import TrainingStopped, UsageError
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.probing import protocols
from acl_plugin.probing.held_out import checked, split
from acl_plugin.probing.protocols import probe
from acl_plugin.registry import PROTOCOLS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import weights_hash, write_model
from conftest import TINY, spec

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path):
    """A run folder with a random encoder."""
    torch.manual_seed(0)
    folder = RunDir(tmp_path / "run")
    folder.start(preset("digits"))
    encoder = Classifier(spec(classes="0"))
    images = datasets.load(preset("digits", limit_train=64).data).train.floats()
    for _ in range(20):  # statistics
        encoder.features(images)
    write_model(folder.encoder_file, spec(), encoder.backbone.state_dict())
    return folder


@pytest.fixture
def two_banks(two_banks_run, tmp_path):
    """A pretrained run with two norm banks."""
    own = {"limit_train": 40, "objective": "acl_ds", "batch_size": 20, "probe_batch_size": 20}
    config = preset("digits", **TINY | own).replace(aft_epochs=1)
    return RunDir(shutil.copytree(two_banks_run, tmp_path / "two")), config


@pytest.mark.e2e
def test_probe_learns_and_writes_what_it_did(run):
    config = preset("digits", **TINY | {"limit_train": 400, "probe_epochs": 40, "probe_lr": 3.0})
    probe(run, config, CPU)
    record = json.loads(run.probe_file.read_text())
    model = load_classifier(run.path)
    images = datasets.load(config.data).train
    assert record["train_accuracy"] == (predictions(model, images) == images.labels).double().mean().item()
    assert record["train_accuracy"] > 0.2  # of ten classes, with eight random features
    assert (record["protocol"], record["probe_lr"], record["n"]) == ("slf", 3.0, 400)
    assert model.spec.classes == tuple("0123456789")


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", PROTOCOLS.names())
def test_every_protocol_gives_a_classifier_and_its_record(two_banks, protocol):
    folder, config = two_banks
    config = config.replace(probe_protocol=protocol)
    files = {p: p.read_bytes() for p in (folder.encoder_file, folder.benign_encoder_file)}
    state = torch.get_rng_state()
    probe(folder, config, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.read_bytes() == content for p, content in files.items())
    record = json.loads(folder.probe_file.read_text())
    assert (record["protocol"], record["n"]) == (protocol, 40)
    assert record["loss"] > 0
    model = load_classifier(folder.path)
    assert not any(m.training for m in model.modules())
    pretrained = load_encoder(folder.path).backbone.state_dict()
    same = all(torch.equal(v, pretrained[k]) for k, v in model.backbone.state_dict().items())
    assert same == (protocol in ("slf", "slf_exact", "alf", "alf_trades", "gsa_slf", "gsa_alf"))  # to the bit
    assert model.head.weight.any()


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", ["slf", "gsa_slf"])
def test_features_without_augmentation_give_the_same_head(two_banks, protocol, monkeypatch):
    folder, config = two_banks
    config = config.replace(probe_protocol=protocol, probe_augment="none", probe_holdout=0.25, limit_train=40)
    heads = []
    for fit in (True, False):
        monkeypatch.setattr(protocols.KnownFeatures, "fit", lambda self, fit=fit: fit)
        probe(folder, config, CPU, overwrite=True)
        heads.append(load_classifier(folder.path).head.weight)
    torch.testing.assert_close(*heads, rtol=1e-3, atol=1e-4)


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", ["slf", "alf", "semi", "gsa_slf"])  # on benign and on PGD images, and all weights
def test_the_epoch_is_chosen_on_training_images_that_are_held_out(two_banks, protocol, monkeypatch):
    folder, config = two_banks
    config = config.replace(probe_protocol=protocol, probe_holdout=0.25, probe_epochs=3)
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda config: dataclasses.replace(load(config), test=None))
    probe(folder, config, CPU)
    record = json.loads(folder.probe_file.read_text())
    assert record["n"] == len(split(datasets.load(config.data).train, config)[0]) < 40
    assert 1 <= record["epoch"] <= 3
    assert 0 <= record["score"] <= 1
    assert record["probe_holdout"] == 0.25


def held_out_of(images, share, seed=0, **options):
    return split(images, preset("digits").replace(probe_holdout=share, seed=seed, **options))


def test_what_is_held_out_is_stratified_and_apart():
    images = datasets.load(preset("digits").data).train
    train, held_out = held_out_of(images, 0.1, seed=3)
    assert not set(train.rows.tolist()) & set(held_out.rows.tolist())
    assert len(train) + len(held_out) == len(images)
    for c in range(10):
        assert (held_out.labels == c).sum() == pytest.approx(0.1 * (images.labels == c).sum(), abs=1)
    assert torch.equal(held_out_of(images, 0.1, seed=3)[1].rows, held_out.rows)
    assert not torch.equal(held_out_of(images, 0.1, seed=4)[1].rows, held_out.rows)
    assert held_out_of(images, 0.0) == (images, None)
    with pytest.raises(UsageError, match="`probe_holdout` 1.0: of 1297 training images, that leaves none on one side"):
        held_out_of(images, 1.0)


def test_a_probe_needs_images_of_two_classes(caplog):
    found = datasets.load(preset("digits", limit_train=40).data)
    one = dataclasses.replace(found, train=found.train.take((found.train.labels == 3).nonzero().squeeze(1)))
    for config in (preset("digits"), preset("digits", probe_protocol="slf_exact")):
        with pytest.raises(UsageError, match="of two classes or more; of digits there are 1 here"):
            checked(one, config)
        with pytest.raises(UsageError, match="there are 0 here"):
            checked(dataclasses.replace(found, train=found.train.take(torch.tensor([], dtype=torch.long))), config)
    keep = torch.cat([(found.train.labels != 3).nonzero().squeeze(1), (found.train.labels == 3).nonzero()[0]])
    few = dataclasses.replace(found, train=found.train.take(keep))
    checked(few, preset("digits"))
    assert "held out" not in caplog.text
    checked(few, preset("digits", probe_holdout=0.1))
    assert "all training images of 3 are held out" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("probe_batch_size", {"probe_protocol": "aff_pgd"}), ("probe_batch_size", {"probe_protocol": "semi"}),
        ("probe_batch_size", {"probe_protocol": "aff_autolora"}), ("aft_batch_size", {"lpaft": "dynacl"}),
        ("label_batch_size", {"probe_protocol": "semi"}),
    ],
)  # fmt: skip
def test_norm_layers_are_not_trained_on_single_images(name, options):
    with pytest.raises(UsageError, match=f"`{name}` 1: allowed is a number from 2"):
        preset("digits", **options, **{name: 1})
    preset("digits", probe_protocol="alf", probe_batch_size=1)


def test_images_can_be_held_out_by_their_numbers(tmp_path):
    images = datasets.load(preset("digits", limit_train=100).data).train
    chosen = images.rows[[3, 50, 7]]
    others = [row for row in range(1797) if row not in images.rows.tolist()][:5]
    numpy.save(tmp_path / "rows.npy", [*chosen.tolist(), *others])  # of all images, not only of those that are used
    train, held_out = held_out_of(images, 0.0, holdout_indices=tmp_path / "rows.npy")
    assert sorted(held_out.rows.tolist()) == sorted(chosen.tolist())
    assert sorted([*train.rows.tolist(), *chosen.tolist()]) == sorted(images.rows.tolist())


@pytest.mark.parametrize("content", [None, b"no array", b"PK\x03\x04garbage", [], [[0.5]], ["a"], [-1, 3], [5000]])
@pytest.mark.parametrize("option", ["holdout_indices", "label_indices"])
def test_numbers_that_cannot_be_read_are_refused(tmp_path, option, content):
    images, file = datasets.load(preset("digits", limit_train=100).data).train, tmp_path / "rows.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        numpy.save(file, numpy.array(content))
    with pytest.raises(UsageError, match=f"`{option}` .*rows.npy: allowed is a .npy file") as error:
        read_rows(file, images, option)
    assert error.value.parameter == option
    assert "\n" not in str(error.value)


def whole_digits():
    data = datasets.load(preset("digits").data)
    return data, data.train.rows[data.train.labels == 3], data.train.rows[data.train.labels == 4]


@pytest.mark.parametrize("option", ["holdout_indices", "label_indices"])
def test_numbers_beyond_the_dataset_are_refused(tmp_path, option):
    data, threes, fours = whole_digits()
    known = [*threes[:3].tolist(), *fours[:3].tolist()]
    config = preset("digits", probe_protocol="semi", **{option: tmp_path / "rows.npy"})
    numpy.save(tmp_path / "rows.npy", [*known, 1796])
    checked(data, config)
    numpy.save(tmp_path / "rows.npy", [*known, 1797, 99999])
    with pytest.raises(UsageError, match=r"from 0 to 1796 \(2 are larger, such as 1797\)") as error:
        checked(data, config)
    assert error.value.parameter == option
    limited = config.replace(limit_train=300)  # numbers of images that the limit leaves out
    checked(datasets.load(preset("digits", limit_train=300).data), limited)


@pytest.mark.parametrize("holdout", [0, 0.5])
def test_labels_of_one_class_are_refused(tmp_path, holdout):
    data, threes, fours = whole_digits()
    config = preset("digits", probe_protocol="semi", probe_holdout=holdout, label_indices=tmp_path / "rows.npy")
    numpy.save(tmp_path / "rows.npy", threes.numpy())
    with pytest.raises(UsageError, match="its training images are of 1 class; allowed are numbers of images of two"):
        checked(data, config)
    numpy.save(tmp_path / "rows.npy", [*threes.tolist(), *fours.tolist()])
    checked(data, config)


@pytest.mark.e2e
def test_a_probe_is_that_of_the_numbers_in_its_files(two_banks, tmp_path):
    folder, config = two_banks
    rows = datasets.load(config.data).train.rows.tolist()
    held_out, labeled = tmp_path / "held_out.npy", tmp_path / "labeled.npy"
    numpy.save(held_out, rows[:8])
    numpy.save(labeled, rows[6:20])  # two of them are held out
    config = config.replace(probe_protocol="semi", holdout_indices=held_out, label_indices=labeled)
    probe(folder, config, CPU)
    record = json.loads(folder.probe_file.read_text())
    assert (record["n"], record["labeled"]) == (32, 12)
    assert record["holdout_indices"] == hashlib.sha256(held_out.read_bytes()).hexdigest()
    before = folder.classifier_file.stat().st_mtime_ns
    probe(folder, config.replace(holdout_indices=held_out.rename(tmp_path / "moved.npy")), CPU)
    assert folder.classifier_file.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="`label_indices` .*none.npy: allowed is a .npy file"):
        probe(folder, config.replace(label_indices=tmp_path / "none.npy", holdout_indices=None), CPU)
    numpy.save(held_out, rows[:9])
    with pytest.raises(UsageError, match="different settings .*holdout_indices"):
        probe(folder, config, CPU)


OPTIONS = {
    "slf": {"probe_nesterov": True, "probe_head": "random", "probe_statistics": "updated"},
    "alf": {"probe_attack_steps": 2, "probe_attack_step": 0.5, "probe_statistics": "updated"},
    "alf_trades": {"trades_start": "image", "probe_attack_steps": 2, "probe_statistics": "updated"},
    "aff_trades": {"trades_start": "image", "aff_banks": "one", "probe_attack_steps": 2},
    "aff_pgd": {"probe_attack_steps": 2, "probe_attack_step": 0.5},
    "semi": {"label_epochs": 3, "label_batch_size": 4, "label_milestones": [], "label_weight_decay": 0.1},
}


@pytest.mark.e2e
@pytest.mark.parametrize(("protocol", "option"), [(name, option) for name, own in OPTIONS.items() for option in own])
def test_every_option_changes_the_classifier(two_banks, protocol, option):
    folder, config = two_banks
    config = config.replace(probe_protocol=protocol, limit_train=40, probe_epochs=2, probe_batch_size=10)
    heads = []
    for given in ({}, {option: OPTIONS[protocol][option]}):
        probe(folder, config.replace(**given), CPU, overwrite=True)
        heads.append(load_classifier(folder.path).head.weight)
    assert not torch.equal(*heads)


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", ["slf", "alf", "alf_trades"])
def test_updated_statistics_are_those_alone(two_banks, protocol):
    folder, config = two_banks
    probe(folder, config.replace(probe_protocol=protocol, probe_statistics="updated"), CPU)
    pretrained, after = load_encoder(folder.path).backbone.state_dict(), load_classifier(folder.path).backbone
    moved = {
        key.rsplit(".", 1)[1] for key, value in after.state_dict().items() if not torch.equal(value, pretrained[key])
    }
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", ["slf", "alf", "aff_trades"])
def test_bfloat16_probes_as_float32_does(two_banks, protocol):
    folder, config = two_banks
    pretrained = load_encoder(folder.path).backbone.state_dict()
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        probe(folder, config.replace(probe_protocol=protocol, precision=precision), CPU, overwrite=True)
        record, model = json.loads(folder.probe_file.read_text()), load_classifier(folder.path)
        assert record["precision"] == precision
        assert {v.dtype for v in model.parameters()} == {torch.float32}
        way = torch.cat([(w - pretrained[k]).flatten() for k, w in model.backbone.named_parameters()])
        found[precision] = (record["loss"], model.head.weight.flatten(), way)
    (loss, head, way), (other_loss, other_head, other_way) = found.values()
    assert other_loss == pytest.approx(loss, rel=1e-2)
    assert not torch.equal(head, other_head)  # it was another computation
    assert torch.cosine_similarity(head, other_head, dim=0) > 0.98
    if protocol == "aff_trades":  # all weights have their gradients
        assert torch.cosine_similarity(way, other_way, dim=0) > 0.5  # bfloat16 rounds as each processor sums


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS.names() if name not in SOLVED])
def test_a_probe_that_diverges_keeps_the_earlier_classifier(two_banks, protocol):
    run, config = two_banks
    probe(run, config.replace(probe_protocol="slf", probe_epochs=1), overwrite=True)
    before = {file: file.read_bytes() for file in (run.classifier_file, run.probe_file)}
    rate = {
        "probe_protocol": protocol,
        "probe_lr": 1e30,
        "label_lr": 1e30,
        "probe_epochs": 3,
        "probe_weight_decay": 0.1,
    }
    rate = {name: value for name, value in rate.items() if name in config.options()}
    with pytest.raises(TrainingStopped, match="probe .*not finite.*; lower its learning rate"):
        probe(run, config.replace(**rate), overwrite=True)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("record", [None, 5, torch.ones(2), {"loss": torch.ones(1)}])
def test_a_protocol_of_others_that_returns_no_record_is_named(run, record):
    probe(run, overwrite=True)
    before = run.classifier_file.read_bytes()
    PROTOCOLS.register("theirs")(lambda probing: record)
    try:
        with pytest.raises(UsageError, match="probe protocol 'theirs' is broken: it returns"):
            probe(run, run.read_config().replace(probe_protocol="theirs"), overwrite=True)
    finally:
        PROTOCOLS.unregister("theirs")
    assert run.classifier_file.read_bytes() == before


@pytest.mark.e2e
def test_l2_has_pgd_protocols_and_no_trades(two_banks):
    folder, config = two_banks
    config = config.replace(norm="L2", eps=0.5)
    for protocol in ("alf", "aff_pgd"):
        probe(folder, config.replace(probe_protocol=protocol), CPU, overwrite=True)
    with pytest.raises(UsageError, match="attack 'TPGD' is not for L2"):
        probe(folder, config.replace(probe_protocol="aff_trades"), CPU, overwrite=True)


@pytest.mark.e2e
def test_probe_is_a_function_of_the_seed(run, tiny_config):
    config = tiny_config.replace(probe_augment="weak")

    def head(seed):
        state = torch.get_rng_state()
        probe(run, config.replace(seed=seed), CPU, overwrite=True)
        assert torch.equal(state, torch.get_rng_state())
        return load_classifier(run.path).head.weight

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


@pytest.mark.e2e
def test_a_record_never_describes_other_weights(run, tiny_config, monkeypatch):
    """A process that is killed between the classifier and its record leaves no record of the probe before."""

    def killed(*_):
        raise KeyboardInterrupt

    probe(run, tiny_config, CPU)
    first = run.classifier_file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            probe(run, tiny_config.replace(probe_lr=7.0), CPU, overwrite=True)
    assert run.classifier_file.read_bytes() != first
    assert not run.probe_file.exists()
    probe(run, tiny_config, CPU)
    assert run.classifier_file.read_bytes() == first
    assert json.loads(run.probe_file.read_text())["weights_sha256"] == weights_hash(load_classifier(run.path))


def test_without_an_encoder_the_command_to_run_is_named(tmp_path):
    folder = RunDir(tmp_path / "empty")
    folder.start(preset("digits"))
    with pytest.raises(UsageError, match=r"encoder.pt is missing; run first: acl-plugin pretrain --out .*empty"):
        probe(folder, preset("digits"), CPU)
