"""The contract: everything that is registered trains in a bare loop and in our trainer."""

import pytest
import torch

from acl_plugin import UsageError, available, create_objective
from acl_plugin.attacks.catalogue import MODES
from acl_plugin.attacks.free_attack import FreeAttack
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import TWO_SIDED
from acl_plugin.data.images import Images
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Objective, Terms, Views
from acl_plugin.objectives.contract import COLUMNS, require_pair
from acl_plugin.objectives.simclr import SimCLR
from acl_plugin.runs.models import load_encoder, read_model, read_projector
from acl_plugin.training.pretrain import pretrain
from acl_plugin.validation import require_not_negative, require_one_of, require_positive
from conftest import spec


def made(name, settings, shape=(1, 8, 8)):
    """An objective that is ready to train, and its encoder."""
    objective = create_objective(name, **settings)
    model = Encoder(spec(shape), objective.norm_banks, objective.projector)
    objective.setup(model)
    return objective, model


SIX = Images(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), 16)


def drawn(objective, count=6):
    """Random views, and those alone that the objective says it needs."""
    images = torch.rand(count, 1, 8, 8)
    views = {"a": images.clone(), "b": images.flip(3), "weak": images.flip(2)}
    return Views(images=images, rows=torch.arange(count), **{name: views[name] for name in objective.needs})


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_bare_loop(name, attack, settings_of):
    torch.manual_seed(0)
    objective, model = made(name, settings_of(name))
    objective.check_images(SIX)
    optimizer = torch.optim.AdamW(objective.param_groups(model), lr=1e-3)
    start = [p.detach().clone() for p in model.parameters()]
    for epoch in range(2):
        objective.on_epoch(epoch, 2)
        optimizer.zero_grad()
        terms = objective.backward(model, drawn(objective), attack)
        optimizer.step()
        assert terms.total.isfinite()
        assert terms.parts
        assert all(part.isfinite() and not part.requires_grad for part in terms.parts.values())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    assert objective.attack_mode in (None, *MODES)
    assert 0 <= objective.strength <= 1
    assert isinstance(objective.downstream(model), Encoder)
    assert objective.paper
    assert type(objective).__doc__


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_in_the_trainer(name, tiny_config, tmp_path, options_of):
    config = tiny_config.replace(**options_of(name), epochs=1)
    run = pretrain(config, tmp_path / "run")
    _, weights = read_model(run.encoder_file)
    assert weights
    assert all(w.isfinite().all() for w in weights.values())
    assert not any("banks" in key or "projector" in key for key in weights)
    assert len(run.metrics_file.read_text().splitlines()) == 2
    objective = create_objective(name)
    assert run.benign_encoder_file.is_file() == (len(objective.norm_banks) > 1)
    assert read_projector(run)[0] == objective.projector
    encoder = load_encoder(run.path)
    assert not encoder.training
    assert encoder(torch.rand(2, 1, 8, 8)).isfinite().all()


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_state_dict_completes_a_checkpoint(name, attack, settings_of):
    """A second objective with the first one's state takes the same next step, to the bit."""

    def step(objective, model):
        torch.manual_seed(7)
        model.zero_grad()
        objective.backward(model, drawn(objective), attack)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    torch.manual_seed(0)
    one, model = made(name, settings_of(name))
    step(one, model)
    torch.manual_seed(1)
    two, twin = made(name, settings_of(name))
    two.load_state_dict(one.state_dict())
    twin.load_state_dict(model.state_dict())
    assert all(torch.equal(g, h) for g, h in zip(step(one, model), step(two, twin), strict=True))


class Counter:
    """Counts passes of images through all encoders there are."""

    def __init__(self, monkeypatch):
        self.forwards = self.input_gradients = self.weight_gradients = 0
        original = Encoder.features

        def features(encoder, x, norm_bank=None):
            f = original(encoder, x, norm_bank)
            self.forwards += len(x)
            trains = any(p.requires_grad for p in encoder.backbone.parameters())
            if f.requires_grad:
                f.register_hook(lambda _: self.backward(len(x), trains, x.requires_grad))
            return f

        monkeypatch.setattr(Encoder, "features", features)

    def backward(self, count, trains, moves):
        assert trains != moves, "an attack has no use for gradients of weights, nor training for those of images"
        self.weight_gradients += count * trains
        self.input_gradients += count * moves


VARIANTS = [
    ("simclr", {}, 5, 6),
    ("acl_a2a", {}, 5, 26),
    ("acl_a2s", {}, 5, 17),
    ("acl_a2s", {"attack_mode": "bank"}, 5, 17),
    ("acl_ds", {}, 5, 32),
    ("rocl", {}, 7, 24),
    ("rocl", {"fidelity": "released"}, 7, 30),
    ("advcl", {}, 5, 38),
    ("advcl", {"cluster_weight": 0.0}, 5, 25),
    ("advcl", {"fidelity": "released"}, 5, 50),
    ("a_infonce", {"variant": "iphn"}, 5, 40),
    ("a_infonce", {"variant": "hn"}, 5, 38),
    ("a_infonce", {"variant": "ip", "fidelity": "released"}, 5, 52),
    ("a_infonce", {"base": "rocl", "variant": "ip"}, 7, 24),
    ("dynacl", {}, 5, 28),
    ("dynacl", {"momentum": None}, 5, 32),
    ("acl_air", {}, 5, 35),
    ("dynacl_air", {}, 5, 35),
    ("deacl", {}, 5, 17),
    ("profeat", {}, 5, 17),
    ("acl_ds", {"benign": 0.0}, 5, 26),
    ("rocl", {"banks": "dual"}, 7, 24),
    ("clae", {}, 5, 20),
    ("byol", {}, 5, 8),
    ("3sat", {}, 5, 22),
    ("3sat", {"fidelity": "released"}, 5, 25),
    ("simsiam", {}, 5, 6),
    ("moco", {}, 5, 4),
    ("barlow_twins", {}, 5, 6),
    ("vicreg", {}, 5, 6),
    ("fare", {}, 10, 24),
    ("fare", {"benign": 0.5}, 10, 27),
    ("fare", {"benign": 0.5, "trades": True}, 10, 27),
    ("gsa_rsl", {}, 7, 36),
    ("gsa_rsl", {"steps": 4}, 7, 50),
    ("gsa_rsl", {"rho": 0.0}, 7, 26),
    ("gsa_rsl", {"global_": 0.0}, 7, 34),
    ("gsa_rsl", {"benign": 0.0}, 7, 26),
    ("gsa_rsl", {"sharpen": "all"}, 7, 36),
    ("gsa_rsl", {"adversarial": 0.0, "global_": 0.0}, 7, 12),
    ("gsa_rsl", {"divergence": "mmd"}, 7, 35),
    ("gsa_rsl", TWO_SIDED, 5, 42),
    ("gsa_rsl", TWO_SIDED | {"attack_divergence": True}, 5, 42),
    ("gsa_rsl", TWO_SIDED | {"rho": 0.0}, 5, 32),
    ("gsa_rsl", TWO_SIDED | {"global_": 0.0}, 5, 38),
    ("gsa_rsl", TWO_SIDED | {"benign": 0.0}, 5, 32),
    ("gsa_rsl", TWO_SIDED | {"benign": 0.0, "global_": 0.0}, 5, 26),
    ("gsa_rsl", TWO_SIDED | {"adversarial": 0.0, "global_": 0.0}, 5, 12),
    ("gsa_rsl", TWO_SIDED | {"adversarial": 0.0, "global_": 0.0, "rho": 0.0}, 5, 6),
]
"""Objective, settings, attack steps, and the fewest encoder forwards per image that its formula and modes need."""


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "own", "steps", "fewest"), VARIANTS)
def test_cost_is_the_fewest_passes_and_what_is_reported(name, own, steps, fewest, settings_of, monkeypatch):
    given = {} if own.get("base") == "rocl" else settings_of(name)
    objective, model = made(name, given | own)
    counter = Counter(monkeypatch)
    count = 4
    objective.backward(model, drawn(objective, count), InnerAttack(ThreatModel("Linf", 0.1), "PGD", steps))
    measured = counter.forwards + counter.input_gradients + 2 * counter.weight_gradients
    assert measured / count == fewest
    assert objective.cost.encoder_forwards(steps) == fewest
    assert counter.input_gradients == count * objective.cost.attacked * steps
    assert counter.weight_gradients == count * objective.cost.backwards


class FreeCounter(Counter):
    """Counts them where the gradients of images are free."""

    def backward(self, count, trains, moves):
        self.weight_gradients += count * trains


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "own", "steps", "fewest"), VARIANTS)
def test_a_free_attack_costs_the_training_alone(name, own, steps, fewest, settings_of, monkeypatch):
    given = {} if own.get("base") == "rocl" else settings_of(name)
    objective, model = made(name, given | own)
    counter, attack, count = FreeCounter(monkeypatch), FreeAttack(ThreatModel("Linf", 0.1), steps=2), 4
    times = attack.times() if objective.attack_mode else [True]
    for _ in times:
        objective.backward(model, drawn(objective, count), attack)
    measured = (counter.forwards + 2 * counter.weight_gradients) / count
    assert measured == objective.cost.encoder_forwards(2, free=True)


def test_the_cost_of_every_objective_is_measured():
    assert {name for name, *_ in VARIANTS} == set(available())


def test_a_view_that_was_not_given_is_reported():
    images = torch.rand(2, 1, 4, 4)
    views = Views(images, images, rows=torch.arange(2))
    assert views.a is images
    with pytest.raises(UsageError, match=r"'images' of Views, which was not given: pass Views\(images=...\)"):
        _ = views.images
    with pytest.raises(UsageError, match="'weak'.*that the objective's attribute needs names"):
        _ = views.weak
    with pytest.raises(AttributeError):
        _ = views.strong


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("deacl", {}, "'deacl' needs a teacher: .*pretrain --objective simclr .*--objective-kwargs.teacher TEACHER"),
        ("profeat", {}, "'profeat' needs a teacher"),
        (
            "deacl",
            {"teacher": "nowhere"},
            r"`teacher` nowhere: allowed is an encoder, as of acl_plugin.load_encoder\(RUN\)",
        ),
        ("advcl", {}, "needs pseudo-labels: .*acl-plugin pseudo-labels RUN --out FILE.*kwargs.pseudo_labels FILE"),
        ("a_infonce", {}, "needs pseudo-labels"),
        ("advcl", {"pseudo_labels": "nowhere.npz"}, "`pseudo_labels` nowhere.npz: allowed is PseudoLabels"),
    ],
)
def test_what_an_objective_needs_and_does_not_get_is_reported(name, settings, message):
    with pytest.raises(UsageError, match=message):
        made(name, settings)


def test_terms_weighted():
    x = torch.tensor(2.0, requires_grad=True)
    terms = Terms.weighted(one=(0.5, x), two=(3.0, x * x))
    assert terms.total.item() == 13.0
    terms.total.backward()
    assert x.grad == 0.5 + 3 * 4
    assert {k: v.item() for k, v in terms.parts.items()} == {"one": 2.0, "two": 4.0}


def test_terms_must_be_written():
    with pytest.raises(UsageError, match="allowed is a method of the objective"):
        Objective().terms(None, None, None)


def test_ranges():
    require_positive(a=1)
    require_not_negative(a=0)
    for bad in (float("nan"), float("inf"), -1, "x", None):
        with pytest.raises(UsageError, match="weight"):
            require_positive(weight=bad)
        with pytest.raises(UsageError, match="weight"):
            require_not_negative(weight=bad)


def test_one_of():
    require_one_of(("one", "two"), mode="one")
    with pytest.raises(UsageError, match="unknown mode 'tow'; the nearest: two"):
        require_one_of(("one", "two"), mode="tow")


LOSS = torch.ones((), requires_grad=True)


class Returning(Objective):
    """An objective whose terms are what a test wants."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def terms(self, model, views, attack):
        return self.found


@pytest.mark.parametrize(
    ("found", "parameter"),
    [
        (None, "terms"),
        (torch.ones((), requires_grad=True), "terms"),
        (Terms(torch.ones(3, requires_grad=True), {}), "terms.total"),
        (Terms(2.0, {}), "terms.total"),
        (Terms(torch.ones(()), {}), "terms.total"),
        (Terms(torch.ones((), dtype=torch.complex64, requires_grad=True), {}), "terms.total"),
        (Terms(LOSS, None), "terms.parts"),
        (Terms(LOSS, {}, None), "terms.collapsed"),
        (Terms(LOSS, {"rows": torch.ones(3)}), "part rows"),
        (Terms(LOSS, {"x": 3.0}), "part x"),
        (Terms(LOSS, {"x": torch.ones(())}, {"x": None}), "collapsed value of part x"),
        *((Terms(LOSS, {name: torch.ones(())}), "name of a part") for name in (*COLUMNS, "", 1)),
    ],
)
def test_what_terms_cannot_return_is_named(found, parameter):
    with pytest.raises(UsageError) as error:
        Returning(found).backward(None, None, None)
    assert error.value.parameter == parameter
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"nce": (1.0, 2.5)},
        {"nce": (1.0, torch.ones(())), "penalty": (0.5, 1.0)},
        {"nce": torch.ones(())},
        {"nce": torch.ones(2)},
        {"nce": (torch.ones(()),)},
        {"nce": (None, torch.ones(()))},
        {"nce": (float("nan"), torch.ones(()))},
        {"nce": (1.0, torch.ones(()), None)},
    ],
)
def test_parts_that_are_no_tensors_are_named(parts):
    with pytest.raises(UsageError, match="allowed is"):
        Terms.weighted(**parts)


@pytest.mark.parametrize("found", [None, torch.ones(()), (LOSS,), (LOSS, 1.0), (LOSS, torch.ones(2))])
def test_a_divergence_that_returns_no_pair_is_named(found):
    with pytest.raises(UsageError, match="divergence mine"):
        require_pair("mine", found)


class Predicting(SimCLR):
    """A predictor of its own, a network with an optimizer of its own, a frozen one, and the encoder as an attribute."""

    def setup(self, model):
        self.seen, self.predictor, self.critic = model, torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)
        self.teacher = torch.nn.Linear(3, 1).requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.critic.parameters())


class Choosing(Predicting):
    """The same, with groups of its own."""

    def param_groups(self, model):
        return [*super().param_groups(model), {"params": [self.predictor.weight], "lr": 0.1}]


@pytest.mark.parametrize(("kind", "own"), [(Predicting, ["weight", "bias"]), (Choosing, ["weight"])])
def test_own_parameters_are_trained(kind, own):
    model, objective = torch.nn.Linear(2, 2), kind()
    objective.setup(model)
    encoder, predictor = objective.param_groups(model)
    expected = [list(model.parameters()), [getattr(objective.predictor, name) for name in own]]
    for group, right in zip((encoder, predictor), expected, strict=True):
        assert list(map(id, group["params"])) == list(map(id, right))


@pytest.mark.parametrize("name", available())
def test_no_parameter_of_our_objectives_is_left_out_or_trained_twice(name, settings_of):
    """What requires a gradient is in a group, or of a divergence with an optimizer of its own."""
    objective, model = made(name, settings_of(name))
    grouped = [id(p) for group in objective.param_groups(model) for p in group["params"]]
    assert len(set(grouped)) == len(grouped)
    divergence = {id(p) for n, p in objective.named_parameters() if "divergence" in n}
    required = {id(p) for p in (*model.parameters(), *objective.parameters()) if p.requires_grad}
    assert set(grouped) == required - divergence
