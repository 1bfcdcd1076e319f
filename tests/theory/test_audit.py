"""The audit on trained and on random encoders; the bounds that are certain hold on all of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from acl_plugin import load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.losses.divergences import DIVERGENCES
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.probing.linear_head import fit_head
from acl_plugin.reporting import figures, tables
from acl_plugin.reporting.status import status
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import AUDIT_VERSION, read_audit
from acl_plugin.theory import audit, encoder_audit
from acl_plugin.theory.bounds import contrastive_bound, coupling_bound
from acl_plugin.training.guard import Guard
from acl_plugin.training.pretrain import pretrain
from conftest import TINY, shorten, spec

CPU = torch.device("cpu")
drawn = figures.svg
CERTAIN = ["coupling", "contrastive, class positives", "contrastive, views as positives"]
SETTINGS = TINY | {"epochs": 2, "keep_every": 1, "limit_train": 64, "limit_test": 48, "probe_weight_decay": 0.05}
"""A head that is decayed so much is the same in any arithmetic."""


@pytest.fixture(scope="module", autouse=True)
def short():
    """The divergences themselves are measured in their own tests; one test draws the figure."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        patch.setattr(figures, "svg", lambda figure: b"<svg></svg>")
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs with kept encoders, five in all; one of two norm banks."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"gsa_rsl": {"lr": 1e-2}, "acl_ds": {"lr": 5e-2, "epochs": 3}}
    configs = {name: preset("digits", **SETTINGS | own | {"objective": name}) for name, own in made.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "healthy", True)  # or an encoder that looks collapsed is not kept
        return {name: pretrain(config, folder / name) for name, config in configs.items()}


@pytest.fixture(scope="module")
def audited(runs, tmp_path_factory):
    out = RunDir(tmp_path_factory.mktemp("joint"))
    return out, audit.audit(list(runs.values()), out, "all", 48, CPU)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"epochs": 0}, False),
        ({"epochs": 1}, True),
        ({"epochs": 1, "objective_kwargs": {"adversarial": 0.0}}, False),
        ({"epochs": 1, "objective": "simclr"}, False),
        ({"epochs": 1, "objective": "acl_air", "objective_kwargs": {"adversarial": 0.0}}, True),
    ],
)
def test_a_row_says_whether_an_adversarial_loss_was_trained(own, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(Guard, "healthy", True)
    run = pretrain(preset("digits", **SETTINGS | {"limit_test": 20} | own), tmp_path / "run")
    (row,) = audit.audit([run], run, "last", 20, CPU)["rows"]
    assert (row["epochs"], row["adversarial"]) == (own["epochs"], expected)


@pytest.mark.e2e
def test_a_row_for_each_checkpoint_of_each_run(runs, audited):
    out, result = audited
    kept = [[int(kept.path.name[-5:]) for kept in run.snapshots()] for run in runs.values()]
    assert kept == [[1], [1, 2]]
    assert [row["epochs"] for row in result["rows"]] == [1, 2, 1, 2, 3]
    assert json.loads(out.audit_file.read_text()) == result
    for run in runs.values():
        own = json.loads(run.audit_file.read_text())
        assert own["rows"] == [row for row in result["rows"] if row["run"] == str(run.path)]
        assert own["settings"]["adversary"].startswith("PGD-3, steps of eps / 4")
    for row in result["rows"]:
        assert set(row["terms"]) >= {"robust_loss", "benign_loss", "nce_adv", "nce_clean", "sharpness", *DIVERGENCES}
        assert all(math.isfinite(value) for value in row["terms"].values())
        assert [b["name"] for b in row["bounds"] if b["certain"]] == CERTAIN
        assert all(b["verdict"].startswith("holds") for b in row["bounds"] if b["certain"])
        assert row["terms"]["robust_loss"] > row["terms"]["benign_loss"]
        assert row["terms"]["sharpness"] > 0
        about = {b["name"]: b["about"] for b in row["bounds"]}
        assert "under PGD-3 on its own loss" in about["contrastive, class positives"]
        assert row["terms"]["joint_js"] >= row["terms"]["js"]
        assert set(row["train"]) == set(row["terms"])
        for name, (low, high) in row["intervals"].items():
            assert low <= high, name
        assert row["intervals"].keys() == row["terms"].keys() - {"probe_norm"}
        assert set(row["null"]) == {"wasserstein", "sliced_wasserstein", "label_shift"}
        by_class = row["by_class"].values()
        assert sum(each["robust_loss"] for each in by_class) / 10 == pytest.approx(row["terms"]["robust_loss"], rel=0.3)
        assert row["population"]["robust_loss"][0] <= row["population"]["robust_loss"][1] <= math.log(10)
        # a lower bound of W1, one of the sliced distance, and the cost of one coupling
        assert row["terms"]["sliced_wasserstein"] <= row["terms"]["coupling_distance"]
        assert row["terms"]["wasserstein"] <= row["terms"]["coupling_distance"]


@pytest.mark.e2e
def test_terms_of_the_last_checkpoint_are_measured_again_by_hand(runs, audited):
    _, result = audited
    (row,) = (r for r in result["rows"] if r["run"] == str(runs["gsa_rsl"].path) and r["epochs"] == 2)
    config = runs["gsa_rsl"].read_config()
    loaded, encoder = datasets.load(config.data), load_encoder(runs["gsa_rsl"].path)
    from sklearn.linear_model import LogisticRegression

    with torch.no_grad():
        f_train, f = encoder.features(loaded.train.floats()), encoder.features(loaded.test.floats())
    fit = LogisticRegression(C=1 / (config.probe.probe_weight_decay * 64), tol=1e-8, max_iter=20_000)
    fit.fit(f_train.double().numpy(), loaded.train.labels.numpy())
    logits = f.double() @ torch.from_numpy(fit.coef_).T + torch.from_numpy(fit.intercept_)
    assert row["terms"]["benign_loss"] == pytest.approx(F.cross_entropy(logits, loaded.test.labels).item(), rel=1e-3)
    best = logits.topk(2).values
    undecided = (best[:, 0] - best[:, 1] < 1e-3).double().mean().item()
    accuracy = (logits.argmax(1) == loaded.test.labels).double().mean().item()
    assert abs(row["terms"]["clean_accuracy"] - accuracy) <= undecided
    norm = torch.linalg.svdvals(torch.from_numpy(fit.coef_))[0].item()
    assert row["terms"]["probe_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.e2e
def test_nothing_is_audited_twice_and_the_random_state_stays(runs, audited, monkeypatch):
    out, result = audited
    monkeypatch.setattr(audit, "audit_encoder", lambda *_: pytest.fail("audited again"))
    before = torch.get_rng_state()
    assert audit.audit(list(runs.values()), out, "all", 48, CPU) == result
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.e2e
@pytest.mark.usefixtures("audited")
def test_an_audit_that_was_stopped_resumes_to_the_same_rows(runs, monkeypatch):
    run = runs["acl_ds"]
    whole = run.audit_file.read_bytes()
    run.audit_file.unlink()
    once = audit.audit_encoder
    left = [True, True]

    def stops(*arguments, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return once(*arguments, **options)

    monkeypatch.setattr(audit, "audit_encoder", stops)
    with pytest.raises(KeyboardInterrupt):
        audit.audit([run], run, "all", 48, CPU)
    assert len(json.loads(run.audit_file.read_text())["rows"]) == 2
    monkeypatch.setattr(audit, "audit_encoder", once)
    audit.audit([run], run, "all", 48, CPU)
    assert run.audit_file.read_bytes() == whole


@pytest.mark.e2e
def test_other_settings_are_another_audit(runs):
    run = runs["gsa_rsl"]
    before = json.loads(run.audit_file.read_text()) if run.audit_file.is_file() else None
    if before is not None:
        with pytest.raises(UsageError, match="already contains an audit with different settings .*n 20, there 48"):
            audit.audit([run], run, "last", 20, CPU)
    result = audit.audit([run], run, "last", 20, CPU, overwrite=True)
    assert json.loads(run.audit_file.read_text())["settings"]["n"] == 20
    assert len(result["rows"]) == 1
    assert all(value is None for value in result["correlation"].values())
    if before is not None:
        run.audit_file.write_text(json.dumps(before, indent=2) + "\n")


@pytest.mark.parametrize("seed", range(6))
def test_the_certain_bounds_hold_for_random_encoders_probes_and_adversaries(seed):
    torch.manual_seed(seed)
    encoder, classes = Encoder(spec()).eval(), 4
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % classes
    x_adv = (x + 0.3 * torch.randn_like(x).sign()).clamp(0, 1)
    with torch.no_grad():
        f, f_adv, z = encoder.features(x), encoder.features(x_adv), F.normalize(encoder(x_adv), dim=1)
    for scale in (0.01, 1.0, 10.0):
        head = torch.nn.Linear(f.shape[1], classes)
        assert coupling_bound(scale * head.weight.detach(), head.bias.detach(), f, f_adv, y).holds
        assert contrastive_bound(z * scale, y).holds
        assert contrastive_bound(z * scale, y, "hinge").holds


@pytest.mark.e2e
def test_the_probe_is_the_solved_head(runs):
    config = runs["gsa_rsl"].read_config()
    loaded = datasets.load(config.data)
    model = encoder_audit.probed(load_encoder(runs["gsa_rsl"].path), loaded, 1e-3, CPU)
    assert isinstance(model, Classifier)
    assert not model.training
    assert (model(loaded.train.floats()).argmax(1) == loaded.train.labels).double().mean() > 0.5


@pytest.mark.e2e
def test_correlations_are_of_every_term_and_right_side():
    def row(i, term, right):
        terms = {"robust_loss": float(i), "robust_accuracy": 0.5, "nce_adv": term}
        about = {"run": f"run {i}", "row": f"setting {i % 6}", "epochs": 4, "adversarial": i % 6 < 3}
        return about | {"terms": terms, "bounds": [{"name": "coupling", "right": right}]}

    found = audit.correlations([row(i, -i, i % 3) for i in range(12)])
    assert set(found) == {"nce_adv", "coupling bound", audit.BASELINE}
    assert found["nce_adv"]["rho"] == pytest.approx(-1)
    assert found["nce_adv"]["partial"] == pytest.approx(-1)
    assert abs(found["coupling bound"]["rho"]) < 0.5
    assert found[audit.BASELINE]["partial"] is None
    # drawn by setting: the interval of 12 runs of 6 settings is that of groups
    names = [f"setting {i % 6}" for i in range(12)]
    by_setting = audit.spearman([float(i % 3) for i in range(12)], range(12), names)
    assert found["coupling bound"]["low"] == by_setting.low


@pytest.mark.e2e
def test_table_and_figure(runs, audited, monkeypatch):
    out, result = audited
    lines = tables.audit(result)
    assert sum("bounds on the robust loss" in line for line in lines) == 2
    assert sum("(certain)" in line for line in lines) == 6
    assert any("(no certificate; if JS" in line for line in lines)
    assert any("of the solved linear probe on these images, under PGD-3" in line for line in lines)
    assert any(line.startswith("PGD-3, steps of eps / 4") for line in lines)
    assert any("(PAC-Bayes-kl)" in line for line in lines)
    n = len(result["rows"])
    assert any(line.startswith(f"Spearman's correlation with the robust loss over {n} checkpoints") for line in lines)
    assert not any("[" in line for line in lines[lines.index(next(x for x in lines if x.startswith("Spearman"))) :])
    monkeypatch.setattr(figures, "svg", drawn)
    assert audit.audit(list(runs.values()), out, "all", 48, CPU) == result  # measures nothing again
    assert out.audit_figure_file.read_bytes() == drawn(figures.audit(result))
    assert b"http://www.w3.org/2000/svg" in out.audit_figure_file.read_bytes()
    assert len(figures.audit(result | {"correlation": {}}).axes) == 1


@pytest.mark.e2e
def test_command_line(runs, tmp_path, capsys):
    folders = [str(run.path) for run in runs.values()]
    command = ["audit", *folders, "--limit", "48", "--checkpoints", "all"]
    assert main(command) == 2
    assert "--out FOLDER is needed for the joint result of several runs" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "joint")]) == 0
    shown = capsys.readouterr().out
    assert f"figure: {tmp_path / 'joint' / 'audit.svg'}" in shown
    assert (tmp_path / "joint" / "audit.svg").is_file()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["RUN", "--limit", "3"], "--limit 3: allowed is a number from 8"),
        (["RUN", "--checkpoints", "some"], "--checkpoints"),
        ([], "RUNS ... is missing"),
    ],
)
def test_mistakes(runs, arguments, message, capsys):
    given = [str(runs["gsa_rsl"].path) if a == "RUN" else a for a in arguments]
    assert main(["audit", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def with_labels(loaded, labels):
    return replace(loaded, test=replace(loaded.test.subset(len(labels)), labels=torch.tensor(labels)))


@pytest.mark.e2e
def test_images_that_cannot_be_audited_are_refused(runs):
    loaded = datasets.load(runs["gsa_rsl"].read_config().data)
    needed = "an audit takes 8 test images or more, two of each of two classes, not these"
    with pytest.raises(UsageError, match=f"{needed} 5 of 5 classes"):
        encoder_audit.require_images(loaded, loaded.test.subset(5))
    for labels in ([3, 0, 0, 0, 0, 0, 0, 0], [0] * 8):
        with pytest.raises(UsageError, match=needed):
            encoder_audit.require_images(loaded, with_labels(loaded, labels).test)
    with pytest.raises(
        UsageError, match="no audited test image of class 4, 5, 6, ...: .* all 10 classes; raise `limit`"
    ):
        encoder_audit.require_images(loaded, with_labels(loaded, [0, 1, 2, 3] * 4).test)
    less = replace(loaded, train=loaded.train.take(loaded.train.labels != 7))
    with pytest.raises(UsageError, match="no training image of class 7: an audit takes images of all 10 classes; add"):
        encoder_audit.require_images(less, loaded.test)


@pytest.mark.e2e
def test_a_diverged_encoder_is_refused_in_one_line(runs):
    config, encoder = runs["gsa_rsl"].read_config(), load_encoder(runs["gsa_rsl"].path)
    for value in (math.nan, math.inf):
        next(encoder.backbone.parameters()).data.fill_(value)
        with pytest.raises(UsageError, match="features of training images are not finite .*: the encoder diverged"):
            encoder_audit.audit_encoder(encoder, config, datasets.load(config.data), 48, CPU)


def test_a_probe_that_is_not_at_its_minimum_is_refused():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 4) + labels.unsqueeze(1)
    weight, bias = fit_head(features, labels, 3, 1e-2)
    encoder_audit.require_solved(weight, bias, features, labels, 1e-2)
    for other in (weight * 0.5, weight * math.nan):
        with pytest.raises(UsageError, match="the probe was not solved: .* raise `probe_weight_decay`"):
            encoder_audit.require_solved(other, bias, features, labels, 1e-2)


@pytest.mark.e2e
def test_an_audit_of_an_earlier_version_is_made_again_and_reported_in_one_line(runs):
    run = runs["acl_ds"]
    before = run.audit_file.read_text() if run.audit_file.is_file() else None
    old = {"complete": True, "settings": {}, "rows": [{"run": "x", "terms": {}}], "correlation": {}}
    run.audit_file.write_text(json.dumps(old))
    assert read_audit(run.audit_file) is None
    assert any("of an earlier version" in line for line in status(run))
    audit.audit([run], run, "last", 20, CPU)
    assert json.loads(run.audit_file.read_text())["version"] == AUDIT_VERSION
    if before is not None:
        run.audit_file.write_text(before)


def test_seeds_of_one_configuration_are_one_row_whatever_changes_no_result():
    other = {"seed": 3, "logger": "wandb", "accelerator": "cpu", "keep_every": 5, "eval_batch_size": 50, "knn_every": 1}
    named = audit._about(preset("digits", **SETTINGS))["row"]
    for option, value in other.items():
        assert audit._about(preset("digits", **SETTINGS | {option: value}))["row"] == named, option
    for option, value in {"lr": 0.5, "epochs": 7, "eps": 0.2}.items():
        assert audit._about(preset("digits", **SETTINGS | {option: value}))["row"] != named, option


@pytest.mark.e2e
def test_a_class_with_few_training_images_is_audited(tmp_path, monkeypatch):
    """A part of the training images that is drawn for the audit may hold one image of it."""
    rng = np.random.default_rng(0)
    for split, counts in {"train": {"a": 60, "b": 2}, "test": {"a": 10, "b": 10}}.items():
        for name, count in counts.items():
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.setattr(Guard, "healthy", True)
    own = {"data_dir": tmp_path / "photos", "image_size": 8, "channels": 1, "epochs": 1, "batch_size": 16}
    tiny = {k: v for k, v in TINY.items() if k in ("backbone", "backbone_kwargs", "attack_steps", "stem")}
    run = pretrain(preset("image_folder", **tiny | own), tmp_path / "run")
    (row,) = audit.audit([run], run, "last", 20, CPU)["rows"]
    assert all(math.isfinite(value) for value in row["train"].values())
