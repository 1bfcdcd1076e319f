import json
import math
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import acl_plugin
from acl_plugin import UsageError, evaluate_embedding, load_encoder
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.cli.main import main
from acl_plugin.evaluation import embedding
from acl_plugin.evaluation.embedding import ATTACKS, DISTANCES, MULTIPLES, STATES, distance, embedding_shift
from acl_plugin.evaluation.encoder_folder import evaluate_embedding as of_run
from acl_plugin.runs.folder import RunDir

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Two points of the curve."""
    monkeypatch.setattr(embedding, "MULTIPLES", (0.5, 1.0))
    monkeypatch.setattr(embedding, "STATES", 2 * (2 + 2))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))


@pytest.fixture
def x():
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def last(states):
    found = list(states)
    return found[-1], len(found)


def test_the_distances():
    f, g = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(distance("cosine", f, g), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(distance("relative L2", f, g), torch.tensor([0.0, 5**0.5]))


@pytest.mark.e2e
def test_every_number_is_that_of_a_loop(network, x):
    state, count = last(embedding_shift(network.eval(), x, THREAT, batch_size=3))
    assert count == 2 * (len(ATTACKS) + 2)
    assert state["complete"]
    f = network(x).detach()
    for name in DISTANCES:
        found = state["distances"][name]
        values = torch.tensor(found["by_image"])
        strongest = found["strongest"]
        assert strongest["mean"] == pytest.approx(values.mean().item(), rel=1e-5)
        assert strongest["median"] == pytest.approx(values.median().item(), rel=1e-5)
        assert strongest["worst"] == pytest.approx(values[strongest["worst_image"]].item(), rel=1e-5)
        assert values.max().item() == pytest.approx(strongest["worst"], rel=1e-5)
        assert all(row["mean"] <= strongest["mean"] + 1e-6 for row in found["attacks"].values())
        assert all(row["recognized"] >= strongest["recognized"] for row in found["attacks"].values())
        pairs = [[distance(name, f[i], f[j]).item() for j in range(7) if j != i] for i in range(7)]
        assert found["others"]["mean"] == pytest.approx(sum(map(sum, pairs)) / 42, rel=1e-4)
        assert found["others"]["nearest"] == pytest.approx(sorted(map(min, pairs))[3], rel=1e-4)
        assert [point["eps"] for point in found["curve"]] == [0.05, 0.1]
        assert found["curve"][0]["mean"] < found["curve"][1]["mean"]
        assert "by_image" not in found["attacks"]["APGD"]


def test_a_linear_encoder_moves_as_far_as_it_can(x):
    """For f(x) = w.x, the largest relative distance is eps ||w||_1 / |w.x|, if no pixel meets 0 or 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False)).eval()
    x = 0.4 + 0.2 * x
    w = model[1].weight.detach()[0]
    state, _ = last(embedding_shift(model, x, THREAT))
    expected = 0.1 * w.abs().sum() / (x.flatten(1) @ w).abs()
    found = state["distances"]["relative L2"]["by_image"]
    assert found == pytest.approx(expected.tolist(), rel=1e-3)


def test_who_is_recognized():
    """Features are the first two pixels; within eps an image takes the features of the other."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).eval()
    model[1].weight.data = torch.eye(2, 64)
    x = torch.full((2, 1, 8, 8), 0.5)
    x[1, 0, 0, 0] = 0.62
    for eps, share in ((0.01, 1.0), (0.3, 0.0)):
        state, _ = last(embedding_shift(model, x, ThreatModel("Linf", eps)))
        assert state["distances"]["relative L2"]["strongest"]["recognized"] == share


@pytest.mark.parametrize(("copies", "batch_size"), [(1, 2), (2, 3), (10, 250)])
def test_duplicates_of_an_image_are_the_image(copies, batch_size, network, x, monkeypatch):
    monkeypatch.setattr(embedding, "ATTACKS", ("PGD-20",))
    images = x[:4].repeat(copies, 1, 1, 1)
    state, _ = last(embedding_shift(network, images, ThreatModel("Linf", 1e-7), batch_size=batch_size))
    for name in DISTANCES:
        rows = [*state["distances"][name]["attacks"].values(), state["distances"][name]["strongest"]]
        assert [row["recognized"] for row in rows] == [1, 1]


@pytest.mark.parametrize("name", DISTANCES)
def test_the_nearest_of_several_images(name):
    """At the same distance the own image counts; a nearer one does not, by however little, unless it is a duplicate."""
    benign = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1e-9]], dtype=torch.float64)
    same = torch.tensor([5, 7, 5])  # features of duplicates differ by rounding

    def is_own(angle, own):
        moved = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        return bool(embedding._nearest_is_own(name, moved, benign, own, same))

    for angle, expected in ((0.0, True), (math.pi / 4 - 1e-6, True), (math.pi / 4 + 1e-6, False), (math.pi / 2, False)):
        assert [is_own(angle, own) for own in range(3)] == [expected, not expected, expected]
    benign[2], same[2] = torch.tensor([0.0, -1.0]), 6
    assert is_own(math.pi / 4, 0)
    assert is_own(math.pi / 4, 1)
    assert not is_own(math.pi / 4, 2)


@pytest.mark.parametrize("name", DISTANCES)
def test_features_that_are_close_together_have_exact_distances(name):
    torch.manual_seed(0)
    features = 16 + 1e-3 * torch.randn(40, 8)  # float32 has seven digits of 16
    exact = features.double()
    found = embedding._pairs(name, embedding._exact(features), embedding._exact(features))
    loop = torch.stack([distance(name, exact, other) for other in exact], 1)
    if name != "cosine":
        loop = loop * exact.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, loop, rtol=1e-3, atol=1e-7)
    assert found.argmin(1).tolist() == list(range(40))


@pytest.mark.e2e
def test_states_and_batches_change_nothing(network, x):
    whole, _ = last(embedding_shift(network.eval(), x, THREAT, batch_size=4, seed=3))
    for stopped in (1, 3, 6):
        states = embedding_shift(network, x, THREAT, batch_size=4, seed=3)
        kept = [next(states) for _ in range(stopped)][-1]
        again, count = last(
            embedding_shift(network, x, THREAT, batch_size=4, seed=3, earlier=json.loads(json.dumps(kept))["distances"])
        )
        assert count <= 8
        assert without_seconds(again) == without_seconds(whole)


def without_seconds(state):
    text = json.loads(json.dumps(state))
    for found in text["distances"].values():
        for row in found["attacks"].values():
            row.pop("seconds")
    return text


@pytest.mark.e2e
def test_a_users_encoder_is_left_as_it_was(network, x, tmp_path):
    network.train()
    before, generator = [p.clone() for p in network.parameters()], torch.get_rng_state()
    result = evaluate_embedding(network, x, THREAT, folder=tmp_path / "results", batch_size=4)
    assert network.training
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(result.moved()) == result.n == 7
    assert "cosine       mean " in str(result)
    kept = json.loads((tmp_path / "results" / "embedding.json").read_text())
    assert kept["distances"] == result.values["distances"]
    scaled = nn.Sequential(*network, nn.Threshold(-1e9, 0.0))  # the same weights
    scaled.forward = lambda images: 3 * network(images)
    with pytest.raises(UsageError, match=r"different settings \(output_norm"):
        evaluate_embedding(scaled, x, THREAT, folder=tmp_path / "results", batch_size=4)
    network.forward = lambda _: pytest.fail("computed again")
    with pytest.raises(UsageError, match="different settings"):
        evaluate_embedding(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, THREAT, folder=tmp_path / "results")


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        return self.items[position]


@pytest.mark.e2e
@pytest.mark.parametrize("label", ["cat", 0.5, None, 3])
def test_labels_are_not_used(label, network, x):
    whole = evaluate_embedding(network, x, THREAT)
    items = [image if label is None else (image, label) for image in x]
    found = evaluate_embedding(network, Items(items), THREAT, batch_size=whole.values.get("batch_size"))
    assert found.values["images"] == whole.values["images"]
    assert found.moved() == whole.moved()


@pytest.mark.e2e
def test_an_encoder_with_norm_banks_is_measured_in_the_last(network, x):
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = acl_plugin.wrap_encoder(layers, (1, 8, 8), norm_banks=("clean", "adv"))
    with torch.no_grad():
        encoder.train()(x, "adv")
    encoder.eval()
    expected = encoder.features(x, "adv").norm(dim=1).mean().item()
    assert abs(expected - encoder.features(x, "clean").norm(dim=1).mean().item()) > 0.01
    found = evaluate_embedding(encoder, x, THREAT)
    assert found.values["output_norm"] == pytest.approx(expected, rel=1e-2)


def test_an_encoder_that_rounds_is_flagged(network, x):
    class Rounding(nn.Module):
        def forward(self, images):
            return network((255 * images).round() / 255)

    state, _ = last(embedding_shift(Rounding().eval(), x, THREAT))
    assert state["flags"][0].startswith("7 of 7 images have zero gradient")
    assert last(embedding_shift(network.eval(), x, THREAT))[0]["flags"] == []


@pytest.mark.e2e
def test_an_encoder_of_a_run_is_measured_by_its_features(teacher_run, tmp_path):
    run = RunDir(shutil.copytree(teacher_run, tmp_path / "run"))
    assert not run.classifier_file.is_file()
    found = of_run(run)
    assert found["complete"]
    encoder = load_encoder(run.path)
    images = acl_plugin.datasets.load(run.read_config().data).test.floats()
    own = evaluate_embedding(encoder, images, ThreatModel("Linf", found["eps"]), batch_size=len(images))
    for name in DISTANCES:  # another memory format, whose rounding an attack multiplies
        ours, there = own.values["distances"][name], found["distances"][name]
        assert ours["others"] == pytest.approx(there["others"], rel=1e-3)
        assert sum(own.moved(name)) == pytest.approx(sum(there["by_image"]), rel=0.2)
    assert of_run(run) == found


@pytest.mark.e2e
def test_the_command_line_and_the_report(teacher_run, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(teacher_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))\n"
    )
    assert main(["evaluate", str(run), "--suite", "embedding", "--limit-test", "12"]) == 0
    lines = capsys.readouterr().out
    assert "recognized" in lines
    assert "other images: mean" in lines
    own = ["evaluate", "--model", "mine.py:build", "--data", "digits", "--limit-test", "12", "--suite", "embedding"]
    assert main([*own, "--out", "own"]) == 0
    assert main([*own, "--out", "own.json"]) == 0
    assert main(["status", "run"]) == 0
    assert "cosine distance" in capsys.readouterr().out
    assert main(["report", "run", "own", "--out", "page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("Distance of features from those of the image without attack") >= 2
    assert main(["evaluate", str(run), "--suite", "embedding", "--limit-test", "13"]) == 2
    assert "different settings" in capsys.readouterr().err


class OfTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0) + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Flatten(0), r"the model gives \(448,\) for 7 images: allowed are \(B, D\) features"),
        (nn.Conv2d(1, 2, 3), "allowed are \\(B, D\\) features"),
        (nn.Sequential(nn.Flatten(), OfTheBatch()), "the features of an image depend on the other images of its batch"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(9.0, 0.0)), "the features of image 0 are zero or not finite"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(9.0, torch.nan)), "features that are not finite"),
        (7, "`model` is int"),
    ],
    ids=["flat", "maps", "batch", "zero", "nan", "none"],
)
def test_what_cannot_be_measured_is_one_line(model, message, x):
    with pytest.raises(UsageError, match=message) as error:
        evaluate_embedding(model, x, THREAT)
    assert "\n" not in str(error.value)


def test_a_missing_threat_model_is_one_line(network, x):
    with pytest.raises(UsageError, match="`threat` is missing"):
        evaluate_embedding(network, x)


def test_the_number_of_states():
    assert len(DISTANCES) * (len(ATTACKS) + len(MULTIPLES)) == STATES
