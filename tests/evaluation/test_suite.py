import dataclasses
import json
import shutil

import pytest
import torch
import torchattacks
from torch import nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet, Images
from acl_plugin.errors import UsageError
from acl_plugin.evaluation import run_folder, suite
from acl_plugin.evaluation.run_folder import evaluate_suite
from acl_plugin.evaluation.suite import CURVE, SUITE
from acl_plugin.models.encoder import Classifier
from acl_plugin.reporting import tables
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import write_model
from acl_plugin.runtime import seeding
from conftest import TINY, spec

CPU = torch.device("cpu")
GIVEN = {"limit_test": 16, "eval_batch_size": 6}


@pytest.fixture
def run(fitted, tmp_path):
    return RunDir(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A classifier that has seen digits: a linear head on a random backbone, fitted by least squares."""
    torch.manual_seed(0)
    config = preset("digits", **TINY | {"limit_test": 16})
    folder = RunDir(tmp_path_factory.mktemp("fitted") / "run")
    folder.start(config)
    model = Classifier(spec(kwargs={"stem_width": 8, "channels": [16, 16, 16, 64]}, classes="0123456789"))
    images = datasets.load(preset("digits").data).train
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model.features(images.floats(0, 256))
        model.eval()
        features = model.features(images.floats())
        inputs = torch.cat([features, torch.ones(len(features), 1)], 1).double()
        targets = nn.functional.one_hot(images.labels, 10).double()
        solved = torch.linalg.lstsq(inputs, targets).solution.float()
        model.head.weight.copy_(10 * solved[:-1].T)
        model.head.bias.copy_(10 * solved[-1])
    write_model(folder.classifier_file, model.spec, model.state_dict())
    return folder.path


@pytest.fixture
def quick(monkeypatch):
    """Few steps, so that the whole suite takes seconds."""
    for name, setting in SUITE.items():
        monkeypatch.setitem(SUITE, name, dataclasses.replace(setting, steps=min(setting.steps, 5)))


@pytest.fixture
def two_sizes(monkeypatch):
    """A curve of two sizes, for tests that are about rows."""
    for module in (suite, run_folder):
        monkeypatch.setattr(module, "CURVE", (0.0, 1.0))


def config(**options):
    return preset("digits", **TINY | GIVEN | options)


@pytest.mark.e2e
def test_the_whole_suite(run, quick):
    state = torch.get_rng_state()
    result = evaluate_suite(run, config(), CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert json.loads(run.suite_file.read_text()) == result
    assert list(result["rows"]) == [name for name in SUITE if name != "TIFGSM"]
    assert set(result["left_out"]) == {"TIFGSM"}  # which takes RGB only
    clean = result["clean_accuracy"]
    assert clean > 0.4
    broken = set()
    for name, row in result["rows"].items():
        assert row["accuracy"] == pytest.approx(clean - len(row["broken"]) / 16), name
        assert row["of_threat_model"] == ("Linf" in SUITE[name].norms)
        assert (row["success"] is not None) == SUITE[name].smallest
        assert (row["median_norm"] is not None) == bool(row["success"])
        assert ("reached" in row) == (SUITE[name].target is not None)
        assert row.get("reached", 0) <= len(row["broken"]) / round(16 * clean)  # who is taken for another is wrong
        assert len(row["broken"]) <= round(16 * clean * (1 if row["success"] is None else row["success"]))
        assert row["eps"] == pytest.approx(0.1 if row["norm"] == "Linf" else 0.5 * 0.1 / (8 / 255) / 48**0.5)
        broken |= set(row["broken"]) if row["of_threat_model"] else set()
    assert result["worst_case"] == pytest.approx(clean - len(broken) / 16)
    assert result["worst_case"] <= min(r["accuracy"] for r in result["rows"].values() if r["of_threat_model"])
    assert [point["eps"] for point in result["curve"]] == [m * 0.1 for m in CURVE]
    assert result["curve"][0]["accuracy"] == clean
    assert result["curve"][-1]["accuracy"] <= result["curve"][1]["accuracy"]


@pytest.mark.e2e
def test_a_row_is_torchattacks_with_the_documented_settings(run, two_sizes):
    result = evaluate_suite(run, config(eval_batch_size=16), CPU, ["PGD-20"])
    from acl_plugin import load_classifier
    from acl_plugin.attacks.bridge import noise_seed

    model, images = load_classifier(run.path), datasets.load(config().data).test
    x, y = images.floats(), images.labels
    right = model(x).argmax(1) == y
    with seeding.isolated_rng(seeding.mixed_seed(0, seeding.SUITE, list(SUITE).index("PGD-20"), 0)):
        torch.manual_seed(noise_seed(None))
        moved = torchattacks.PGD(model, eps=0.1, alpha=0.025, steps=20)(x[right], y[right])
    still = (model(moved).argmax(1) == y[right]).sum().item()
    assert result["rows"]["PGD-20"]["accuracy"] == still / 16


def test_smallest_perturbations_have_a_median_and_a_closed_form():
    """On a linear classifier DeepFool's step is the distance to the nearest boundary, up to its overshoot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)  # the boundary passes through grey
        x = torch.rand(20, 1, 4, 4) * 0.2 + 0.4
        y = model(x).argmax(1)
        w, margin = model[1].weight[0] - model[1].weight[1], (model(x)[:, 0] - model(x)[:, 1]).abs()
    distance = margin / w.norm()
    moved = InnerAttack(ThreatModel("L2", 0.01), "DeepFool", 50).classifier(model, x, y, bounded=False)
    norms = (moved - x).flatten(1).norm(dim=1)
    assert norms.max() > 0.01  # not projected
    torch.testing.assert_close(norms, 1.02 * distance, rtol=2e-2, atol=1e-4)


@pytest.mark.e2e
def test_rows_are_kept_and_other_settings_are_refused_or_overwrite(run, quick, two_sizes, monkeypatch):
    first = evaluate_suite(run, config(), CPU, ["FGSM"])
    calls = []
    original = suite._row
    monkeypatch.setattr(suite, "_row", lambda name, *rest: calls.append(name) or original(name, *rest))
    again = evaluate_suite(run, config(), CPU, ["FGSM", "MIFGSM"])
    assert calls == ["MIFGSM"]
    assert again["rows"]["FGSM"] == first["rows"]["FGSM"]
    with pytest.raises(UsageError, match="different settings .eps 0.05, there 0.1.. Pass `overwrite` to replace it"):
        evaluate_suite(run, config(eps=0.05), CPU, ["FGSM"])
    evaluate_suite(run, config(eps=0.05), CPU, ["FGSM"], overwrite=True)
    assert calls == ["MIFGSM", "FGSM"]
    assert list(json.loads(run.suite_file.read_text())["rows"]) == ["FGSM"]


@pytest.mark.e2e
def test_l2_has_its_own_rows_in_the_worst_case(run, quick, two_sizes):
    result = evaluate_suite(run, config(norm="L2", eps=0.4), CPU, ["FGSM", "PGDL2", "CW", "APGD"])
    of_threat = {name for name, row in result["rows"].items() if row["of_threat_model"]}
    assert of_threat == {"PGDL2", "CW", "APGD"}
    assert result["rows"]["FGSM"]["norm"] == "Linf"
    assert result["rows"]["PGDL2"]["eps"] == 0.4
    assert result["rows"]["FGSM"]["eps"] == pytest.approx(8 / 255 * 0.4 / 0.5 * 48**0.5)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (["PDG-20"], "unknown attack of the suite 'PDG-20'; the nearest: PGD-20"),
        (["FGSM", "TIFGSM"], "'TIFGSM' takes images of 3 channels, not 1"),
        ([], "allowed are names of the suite"),
    ],
)
def test_attacks_that_cannot_be_are_refused(run, attacks, message):
    with pytest.raises(UsageError, match=message) as error:
        evaluate_suite(run, config(), CPU, attacks)
    assert error.value.parameter == "attacks"
    assert not run.suite_file.exists()


@pytest.mark.e2e
@pytest.mark.parametrize(("classes", "channels", "width"), [(2, 1, 8), (3, 3, 8), (4, 1, 8), (12, 3, 8), (4, 3, 12)])
def test_every_attack_with_any_classes_and_shape(tmp_path, monkeypatch, quick, two_sizes, classes, channels, width):
    torch.manual_seed(0)
    names = tuple(f"c{i}" for i in range(classes))
    pixels = torch.randint(0, 256, (4, channels, 8, width), dtype=torch.uint8)
    model = Classifier(spec((channels, 8, width), classes=names)).eval()
    with torch.no_grad():
        labels = model(pixels / 255).argmax(1)
    images = Images(pixels, labels, torch.arange(4), levels=255)
    monkeypatch.setattr(datasets, "load", lambda config: DataSet("digits", images, images, names, (0.5,), (0.5,)))
    folder = RunDir(tmp_path / "run")
    folder.start(config())
    write_model(folder.classifier_file, model.spec, model.state_dict())
    result = evaluate_suite(folder, config(), CPU)
    wide = width != 8
    left_out = {"DIFGSM": wide, "TIFGSM": wide or channels == 1, "APGDT": classes < 4}
    assert set(result["left_out"]) == {name for name, is_left_out in left_out.items() if is_left_out}
    assert [*result["rows"]] == [name for name in SUITE if name not in result["left_out"]]
    for name in result["left_out"]:
        with pytest.raises(UsageError) as error:
            evaluate_suite(folder, config(), CPU, [name])
        assert error.value.parameter == "attacks"
    assert len(tables.suite(result)) > len(SUITE)


@pytest.mark.e2e
def test_every_attack_has_its_own_random_numbers(run, quick, two_sizes, monkeypatch):
    numbers, under = [], suite._under

    def recorded(attack, target, clean, number, setting):
        numbers.append(number)
        return under(attack, target, clean, number, setting)

    monkeypatch.setattr(suite, "_under", recorded)
    result = evaluate_suite(run, config(), CPU)
    assert len(set(numbers)) == len(numbers) == len(result["rows"]) + len(result["curve"]) - 1  # eps 0 has no attack


@pytest.mark.e2e
def test_a_row_of_another_budget_is_measured_again(run, quick, two_sizes, monkeypatch):
    first = evaluate_suite(run, config(), CPU, ["FGSM", "PGD-20"])
    monkeypatch.setitem(SUITE, "PGD-20", dataclasses.replace(SUITE["PGD-20"], steps=3))
    calls = []
    original = suite._row
    monkeypatch.setattr(suite, "_row", lambda name, *rest: calls.append(name) or original(name, *rest))
    again = evaluate_suite(run, config(), CPU, ["FGSM", "PGD-20"])
    assert calls == ["PGD-20"]
    assert again["rows"]["FGSM"] == first["rows"]["FGSM"]
    assert again["rows"]["PGD-20"]["steps"] == 3


@pytest.mark.e2e
def test_budgets_are_the_usual_ones_and_the_table_states_them(run, two_sizes, monkeypatch):
    assert {name: SUITE[name].steps for name in ("APGD", "APGDT", "FAB", "Square", "CW")} == {
        "APGD": 100, "APGDT": 100, "FAB": 100, "Square": 5000, "CW": 100,
    }  # fmt: skip
    monkeypatch.setitem(SUITE, "DeepFool", dataclasses.replace(SUITE["DeepFool"], steps=10))  # or it takes most of this
    lines = tables.suite(evaluate_suite(run, config(), CPU, ["PGD-20", "DeepFool"]))
    (pgd,) = (line.split() for line in lines if line.startswith("PGD-20 ") and "by eps" not in line)
    assert pgd[2:] == ["Linf", "0.1", "20", "1", "0.025"]
    (deepfool,) = (line for line in lines if line.startswith("DeepFool"))
    assert "% at any size, median norm" in deepfool


def test_the_radius_of_the_other_norm_goes_with_eps_and_size():
    linf, l2, cifar = ThreatModel("Linf", "8/255"), ThreatModel("L2", 0.5), (3, 32, 32)
    assert suite.radius("L2", linf, cifar) == pytest.approx(0.5)
    assert suite.radius("Linf", l2, cifar) == pytest.approx(8 / 255)
    assert suite.radius("L2", ThreatModel("Linf", "4/255"), cifar) == pytest.approx(0.25)
    assert suite.radius("L2", linf, (3, 64, 64)) == pytest.approx(1.0)
    assert suite.radius("Linf", ThreatModel("L2", 99), cifar) == 1
    assert suite.radius("L2", l2, (1, 8, 8)) == 0.5  # its own
