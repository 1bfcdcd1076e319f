"""The audit on trained and on random encoders; the bounds that are certain hold on all of them."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from acl_plugin import load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.losses.divergences import DIVERGENCES
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.reporting import figures, tables
from acl_plugin.runs.folder import RunDir
from acl_plugin.theory import audit
from acl_plugin.theory.bounds import contrastive_bound, coupling_bound
from acl_plugin.training.pretrain import pretrain
from conftest import TINY, shorten, spec

CPU = torch.device("cpu")
CERTAIN = ["coupling", "contrastive, class positives", "contrastive, views as positives"]
SETTINGS = TINY | {"epochs": 4, "keep_every": 1, "limit_train": 64, "limit_test": 48, "probe_weight_decay": 0.05}
"""A head that is decayed so much is the same in any arithmetic."""


@pytest.fixture(scope="module", autouse=True)
def short():
    """The divergences themselves are measured in their own tests."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs with three kept encoders each, one of two norm banks."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"gsa_rsl": {"lr": 1e-2}, "acl_ds": {"lr": 5e-2}}
    return {name: pretrain(preset("digits", **SETTINGS | o, objective=name), folder / name) for name, o in made.items()}


@pytest.fixture(scope="module")
def audited(runs, tmp_path_factory):
    out = RunDir(tmp_path_factory.mktemp("joint"))
    return out, audit.audit(list(runs.values()), out, "all", 48, CPU)


@pytest.mark.e2e
def test_a_row_for_each_checkpoint_of_each_run(runs, audited):
    out, result = audited
    kept = [[int(kept.path.name[-5:]) for kept in run.snapshots()] for run in runs.values()]
    assert [row["epochs"] for row in result["rows"]] == [*kept[0], 4, *kept[1], 4]
    assert min(map(len, kept)) >= 2
    assert json.loads(out.audit.read_text()) == result
    for run in runs.values():
        own = json.loads(run.audit.read_text())
        assert own["rows"] == [row for row in result["rows"] if row["run"] == str(run.path)]
        assert own["settings"]["adversary"] == "PGD-20"
    for row in result["rows"]:
        assert set(row["terms"]) >= {"robust_loss", "benign_loss", "nce_adv", "nce_clean", "sharpness", *DIVERGENCES}
        assert all(math.isfinite(value) for value in row["terms"].values())
        assert [b["name"] for b in row["bounds"] if b["certain"]] == CERTAIN
        assert all(b["verdict"].startswith("holds") for b in row["bounds"] if b["certain"])
        assert row["terms"]["robust_loss"] > row["terms"]["benign_loss"]
        assert row["terms"]["sharpness"] > 0
        # a lower bound of W1, one of the sliced distance, and the cost of one coupling
        assert row["terms"]["sliced_wasserstein"] <= row["terms"]["coupling_distance"]
        assert row["terms"]["wasserstein"] <= 1.05 * row["terms"]["coupling_distance"]


@pytest.mark.e2e
def test_terms_of_the_last_checkpoint_are_measured_again_by_hand(runs, audited):
    _, result = audited
    (row,) = (r for r in result["rows"] if r["run"] == str(runs["gsa_rsl"].path) and r["epochs"] == 4)
    config = runs["gsa_rsl"].read_config()
    loaded, encoder = datasets.load(config), load_encoder(runs["gsa_rsl"].path)
    from sklearn.linear_model import LogisticRegression

    with torch.no_grad():
        f_train, f = encoder.features(loaded.train.floats()), encoder.features(loaded.test.floats())
    fit = LogisticRegression(C=1 / (config.probe_weight_decay * 64), tol=1e-8, max_iter=20_000)
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
def test_an_audit_that_was_stopped_goes_on_to_the_same_rows(runs, monkeypatch):
    run = runs["acl_ds"]
    whole = run.audit.read_bytes()
    run.audit.unlink()
    once = audit.audit_encoder
    left = [True, True]

    def stops(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return once(*arguments)

    monkeypatch.setattr(audit, "audit_encoder", stops)
    with pytest.raises(KeyboardInterrupt):
        audit.audit([run], run, "all", 48, CPU)
    assert len(json.loads(run.audit.read_text())["rows"]) == 2
    monkeypatch.setattr(audit, "audit_encoder", once)
    audit.audit([run], run, "all", 48, CPU)
    assert run.audit.read_bytes() == whole


@pytest.mark.e2e
def test_other_settings_are_another_audit(runs):
    run = runs["gsa_rsl"]
    before = json.loads(run.audit.read_text()) if run.audit.is_file() else None
    result = audit.audit([run], run, "last", 20, CPU)
    assert json.loads(run.audit.read_text())["settings"]["n"] == 20
    assert len(result["rows"]) == 1
    assert all(value is None for value in result["correlation"].values())
    if before is not None:
        run.audit.write_text(json.dumps(before, indent=2) + "\n")


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


def test_label_shift_is_that_of_two_known_laws():
    torch.manual_seed(0)
    labels = torch.arange(400) % 2
    features = torch.randn(400, 1) * 0.3 + 2 * labels.unsqueeze(1)
    same = audit.label_shift(features, features + 0.05 * torch.randn(400, 1), labels, 2, 1e-4, seed=0)
    turned = audit.label_shift(features, 2 - features, labels, 2, 1e-4, seed=0)  # labels change sides
    assert same < 0.15
    assert turned == pytest.approx(2, abs=0.1)


@pytest.mark.e2e
def test_the_probe_is_the_solved_head(runs):
    config = runs["gsa_rsl"].read_config()
    loaded = datasets.load(config)
    model = audit.probed(load_encoder(runs["gsa_rsl"].path), loaded, 1e-3, CPU)
    assert isinstance(model, Classifier)
    assert not model.training
    assert (model(loaded.train.floats()).argmax(1) == loaded.train.labels).double().mean() > 0.5


@pytest.mark.e2e
def test_correlations_are_of_every_term_and_right_side():
    def row(run, loss, term, right):
        terms = {"robust_loss": loss, "robust_accuracy": 0.5, "nce_adv": term}
        return {"run": run, "terms": terms, "bounds": [{"name": "coupling", "right": right}]}

    found = audit.correlations([row("a", i, -i, i % 3) for i in range(12)])
    assert set(found) == {"nce_adv", "coupling bound"}
    assert found["nce_adv"]["rho"] == pytest.approx(-1)
    assert abs(found["coupling bound"]["rho"]) < 0.5


@pytest.mark.e2e
def test_table_and_figure(audited):
    out, result = audited
    lines = tables.audit(result)
    assert sum("bounds on the robust loss" in line for line in lines) == 2
    assert sum("(certain)" in line for line in lines) == 6
    assert any("estimate, no certificate" in line for line in lines)
    n = len(result["rows"])
    assert any(line.startswith(f"Spearman's correlation with the robust loss over {n} checkpoints") for line in lines)
    assert out.audit_figure.read_bytes() == figures.svg(figures.audit(result))
    assert b"http://www.w3.org/2000/svg" in out.audit_figure.read_bytes()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["RUN", "--limit", "3"], "--limit 3: allowed is a number from 8"),
        (["RUN", "--checkpoints", "some"], "--checkpoints"),
        ([], "runs"),
    ],
)
def test_mistakes(runs, arguments, message, capsys):
    given = [str(runs["gsa_rsl"].path) if a == "RUN" else a for a in arguments]
    assert main(["audit", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.e2e
def test_too_few_images_are_refused(runs):
    config, encoder = replace(runs["gsa_rsl"].read_config(), limit_test=8), load_encoder(runs["gsa_rsl"].path)
    loaded = datasets.load(config)
    one = replace(loaded.test, labels=torch.tensor([3, 0, 0, 0, 0, 0, 0, 0]))
    for images in (loaded.test.subset(5), one):
        with pytest.raises(UsageError, match="an audit takes 8 test images or more, two of each of two classes"):
            audit.audit_encoder(encoder, config, replace(loaded, test=images), 500, CPU)
    few = replace(loaded.test, labels=torch.tensor([3, 0, 0, 0, 0, 0, 0, 3]))
    assert audit.audit_encoder(encoder, config, replace(loaded, test=few), 500, CPU)["terms"]["label_shift"] >= 0
