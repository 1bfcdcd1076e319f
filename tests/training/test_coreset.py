import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.wrapped import wrap_encoder
from acl_plugin.objectives.base import Objective, Terms, Views
from acl_plugin.registry import create_objective
from acl_plugin.training import coreset
from acl_plugin.training.coreset import Coreset, Criterion, heads, held_out_count, reached, select
from acl_plugin.training.pretrain import pretrain
from conftest import spec
from golden_inputs import ACCURACY, outputs, rcs_case, start_from_noise

pytestmark = pytest.mark.numeric


@pytest.fixture
def config():
    options = {"limit_train": 60, "batch_size": 10, "coreset": "rcs", "coreset_fraction": 0.4, "epochs": 20}
    return preset("digits", **options, coreset_every=5)


@pytest.fixture
def images(config):
    return datasets.load(config.data).train


def draw(pixels, rows):
    x = pixels.float() / 16
    return Views(x, x.flip(3), x, rows, x.flip(2))


def batches_of(images, size):
    return [images.take(torch.arange(i, i + size)) for i in range(0, len(images) - size + 1, size)]


class Toward(Objective):
    """A loss whose gradient on the head is known: the mean pixel of the batch times the sum of the head."""

    def terms(self, model, views, attack):
        head = heads(model)[0]
        return Terms.weighted(toward=(1.0, (views.a.mean() - 0.3) * sum(p.sum() for p in head)))


def size_of_head(model):
    """Stands for the divergence: its gradient moves with the head."""
    return sum((p**2).sum() * (i + 1) for i, p in enumerate(heads(model)[0]))


def reference_selection(model, objective, batches, budget, length):
    """The greedy loop of the paper: after each choice the projector moves, and the gradient is computed again."""
    model = copy.deepcopy(model).eval()
    head = heads(model)[0]

    def averaged(gradients):
        return [g.mean(0) for g in gradients]

    def gradient(value):
        return torch.autograd.grad(value, head)

    gradients = [gradient(objective.terms(model, draw(b.pixels, b.rows), None).total) for b in batches]
    taken = []
    for _ in range(budget):
        wanted = averaged(gradient(size_of_head(model)))
        scores = {}
        for i in set(range(len(batches))) - set(taken):
            scores[i] = sum((g * w).sum().item() for g, w in zip(averaged(gradients[i]), wanted, strict=True))
        taken.append(max(scores, key=scores.get))
        with torch.no_grad():
            for p, g in zip(head, gradients[taken[-1]], strict=True):
                p -= length * g
    return taken


@pytest.mark.e2e
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_selection_is_the_greedy_loop(images, fidelity, monkeypatch):
    torch.manual_seed(0)
    model = Encoder(spec())
    monkeypatch.setattr(coreset, "RATE", 50.0)  # so that each step matters to the next choice
    monkeypatch.setattr(coreset, "_divergence", lambda m, *_: size_of_head(m))
    objective, batches = create_objective("simclr"), batches_of(images, 6)
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2)
    taken = select(model, objective, attack, batches, draw, Criterion(images, 6, 3, fidelity))
    assert taken == reference_selection(model, objective, batches, 6, 100.0 if fidelity == "released" else 50.0)
    assert taken != reference_selection(model, objective, batches, 6, 0.0)


@pytest.mark.e2e
@pytest.mark.parametrize("released", [False, True])
def test_the_divergence_of_validation_images_rises_by_their_attack(images, released):
    torch.manual_seed(0)
    model = Encoder(spec(), ("clean", "adv"))
    for norm_bank in model.norm_banks:
        model(images.floats(), norm_bank)  # statistics
    model.eval()
    divergence = coreset._divergence(
        model, create_objective("acl_ds"), InnerAttack(ThreatModel("Linf", 0.1)), images.take(torch.arange(8)), released
    )
    x = images.floats(0, 8)
    x = x[:4].repeat_interleave(2, 0) if released else x
    rows = coreset._min_max_rows if released else coreset._kl_rows
    with torch.no_grad():
        still = rows(model(x, "adv"), model(x, "clean")).mean()
    assert divergence > still
    assert divergence.requires_grad


@pytest.mark.e2e
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_selection_and_criterion_are_those_of_the_authors_code(fidelity, monkeypatch):
    expected = outputs("rcs")[fidelity]
    model, objective, attack, batches, validation, draw = rcs_case()
    monkeypatch.setattr(coreset, "RATE", 20.0)
    in_turns = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])  # their views of an image are neighbors
    start_from_noise(monkeypatch, lambda rows: in_turns if rows == 16 else torch.arange(rows))
    means, original = [], coreset._row_means
    monkeypatch.setattr(coreset, "_row_means", lambda g: means.append(original(g)) or means[-1])
    budget = len(batches) - 1
    chosen = select(model, objective, attack, batches, draw, Criterion(validation, budget, 0, fidelity))
    assert chosen == expected["taken"]
    criterion = torch.stack(means[len(batches) :])
    torch.testing.assert_close(criterion, torch.tensor(expected["criterion"], dtype=torch.float64), **ACCURACY)
    gains = torch.stack(means[: len(batches)]) @ criterion[0]
    torch.testing.assert_close(gains, torch.tensor(expected["gains"][0], dtype=torch.float64), **ACCURACY)


@pytest.mark.e2e
def test_the_batch_that_lowers_the_divergence_is_taken(images, monkeypatch):
    """R is the sum of the head's weights: its gradient is 1 everywhere, and the brightest batch agrees most."""
    torch.manual_seed(0)
    model = Encoder(spec())
    monkeypatch.setattr(coreset, "_divergence", lambda m, *_: sum(p.sum() for p in heads(m)[0]))
    batches = batches_of(images, 10)
    brightness = torch.stack([draw(b.pixels, b.rows).a.mean() for b in batches])
    taken = select(model, Toward(), InnerAttack(ThreatModel("Linf", 0.1)), batches, draw, Criterion(images, 3, 0))
    assert taken == brightness.argsort(descending=True)[:3].tolist()


def test_the_divergence_is_of_distributions_or_as_released():
    z, benign = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    p, q = torch.distributions.Categorical(logits=z), torch.distributions.Categorical(logits=benign)
    torch.testing.assert_close(coreset._kl_rows(z, benign), torch.distributions.kl_divergence(p, q))
    scaled = []
    for t in (z, benign):
        low, high = t.min(1, keepdim=True)[0], t.max(1, keepdim=True)[0]
        scaled.append((t - low) / (high - low) + 1e-8)
    expected = nn.functional.kl_div(scaled[1].log(), scaled[0], reduction="none").mean(1)
    torch.testing.assert_close(coreset._min_max_rows(z, benign), expected)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["simclr", "gsa_rsl", "dynacl", "advcl", "profeat"])
def test_any_objective_is_selected_for_and_nothing_is_changed(name, images, settings_of):
    torch.manual_seed(0)
    objective = create_objective(name, **settings_of(name))
    model = Encoder(spec(), objective.norm_banks, objective.projector)
    objective.setup(model)
    before = copy.deepcopy((model.state_dict(), objective.state_dict(), torch.get_rng_state()))
    flags = [p.requires_grad for p in model.parameters()]
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 2)
    arguments = (model, objective, attack, batches_of(images, 20), draw, Criterion(images.take(torch.arange(4)), 2, 5))
    taken = select(*arguments)
    assert len(set(taken)) == 2
    assert select(*arguments) == taken
    after = (model.state_dict(), objective.state_dict(), torch.get_rng_state())
    for one, two in zip(before[:2], after[:2], strict=True):
        assert all(torch.equal(v, two[k]) for k, v in one.items() if isinstance(v, torch.Tensor))
    assert torch.equal(before[2], after[2])
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_without_a_projector_the_last_weight_of_the_backbone_decides():
    model = Encoder(spec(), projector="identity")
    (weight,) = heads(model)[0]
    assert weight is [p for p in model.backbone.parameters() if p.dim() == 4][-1]
    assert len(heads(Encoder(spec()))[0]) == 4


def test_epochs_and_sizes(config, images):
    parts = Coreset(config.coreset, config.training, config.machine.seed, images)
    assert held_out_count(60) == len(parts.held_out) == 2
    assert held_out_count(50_000) == 500
    assert len(parts.pool) == 58
    assert not set(parts.pool.rows.tolist()) & set(parts.held_out.rows.tolist())
    assert (parts.first_epoch, parts.budget) == (2, 2)
    assert [epoch for epoch in range(20) if parts.is_due(epoch)] == [2, 7, 12, 17]
    assert [parts.steps_before(epoch) for epoch in (0, 1, 2, 3, 20)] == [0, 5, 10, 12, 46]
    assert parts.images(0) is parts.images(19) is parts.pool


def test_a_run_that_continues_for_more_epochs_warms_up_again(config, images):
    """With the selection of the shorter run: every epoch has the images that are counted."""
    parts = Coreset(config.coreset, config.replace(epochs=60).training, config.machine.seed, images)
    parts.chosen, parts.chosen_at = torch.arange(20), 2
    assert parts.first_epoch == 6
    for epoch in range(3, 9):
        batches = parts.steps_before(epoch + 1) - parts.steps_before(epoch)
        assert batches == len(parts.images(epoch)) // config.training.batch_size


@pytest.mark.parametrize("name", ["fare", "profeat"])
def test_the_head_is_what_the_loss_reaches(name, images, settings_of):
    torch.manual_seed(0)
    net = nn.Sequential(
        OrderedDict(body=nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), fc=nn.Linear(8, 3))
    )
    own = settings_of(name) | ({"projector_weight": 0.0, "initialize": False} if name == "profeat" else {})
    objective = create_objective(name, **own)
    model = wrap_encoder(
        net, (1, 8, 8), features="body", projector=objective.projector, norm_banks=objective.norm_banks
    )
    objective.setup(model)
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 1)
    criterion = Criterion(images.take(torch.arange(4)), 2, 5)
    assert len(select(model, objective, attack, batches_of(images, 20), draw, criterion)) == 2
    terms = objective.terms(model.requires_grad_(True), draw(images.pixels[:20], images.rows[:20]), attack)
    assert reached(model, terms.total) == ["backbone.module.body.0.weight"]


@pytest.mark.e2e
def test_the_run_trains_on_the_part(tiny_config, tmp_path, monkeypatch):
    seen = []

    class Rows(Objective):
        def terms(self, model, views, attack):
            seen.append(views.rows.tolist())
            return Terms.weighted(sum=(1.0, sum(p.sum() ** 2 for p in model.parameters())))

    monkeypatch.setattr("acl_plugin.training.build.create_objective", lambda *_, **__: Rows())
    options = {"coreset": "rcs", "coreset_warmup": 0.25, "coreset_every": 2, "coreset_fraction": 0.6, "epochs": 4}
    pretrain(tiny_config.replace(**options, batch_size=4), tmp_path / "run")
    # whole; selection, with the first that is taken once more; two epochs of the part; selection; one epoch
    assert len(seen) == 3 + 4 + 2 + 2 + 4 + 2
    spans = ((0, 3), (3, 7), (7, 9), (9, 11), (15, 17))
    whole, candidates, part, same, other = ({row for batch in seen[i:j] for row in batch} for i, j in spans)
    assert part == same
    assert part < candidates
    assert len(whole) == len(candidates) == 12
    assert len(part) == len(other) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset": "rsc"}, "unknown `coreset` 'rsc'; the nearest: rcs"),
        ({"coreset_fraction": 1.5}, "`coreset_fraction` 1.5: allowed is a share above 0 up to 1"),
        ({"coreset_fraction": 0}, "`coreset_fraction` 0: allowed is a share above 0 up to 1"),
        ({"coreset_every": 0}, "`coreset_every` 0"),
        ({"coreset": "rcs", "batch_size": 15}, "`batch_size` 15 on 1 device.*only 14 training images"),
        ({"coreset": "rcs", "devices": 2}, "`coreset` rcs works on one device, not on 2"),
    ],
)
def test_bad_settings_are_reported_and_nothing_is_written(options, message, tiny_config, tmp_path):
    from acl_plugin.config import check

    with pytest.raises(UsageError, match=message):
        config = tiny_config.replace(**options)
        check(config)
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
