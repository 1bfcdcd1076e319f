import dataclasses
import random

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

import reference
from acl_plugin import registry
from acl_plugin.attacks.catalogue import MODES, attack_names
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError
from acl_plugin.losses import contrastive
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.validation import NORMS
from conftest import spec, trained_encoder

EPS = {"Linf": 0.1, "L2": 0.5}
SUITED = {  # arguments for small images
    "SPSA": {"nb_sample": 16, "max_batch_size": 16},
    "Square": {"n_queries": 50},
    "TIFGSM": {"len_kernel": 3},
}
VALID = [(n, v, name) for n in NORMS for v in MODES for name in attack_names(n, v)]


@pytest.fixture
def views():
    torch.manual_seed(1)
    return torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)


def embed(encoder, x, norm_bank="adv"):
    with torch.no_grad(), norm_banks.inference(encoder):
        return encoder(x, norm_bank)


def aim(attack, encoder, mode, a, b):
    """The attacked image(s), and the attacked loss as a function of them, in eval mode."""
    keys = embed(encoder, b)
    if mode == "pairwise":
        moved = torch.cat(attack.pairwise(encoder, a, b, norm_bank="adv"))
        return moved, torch.cat([a, b]), lambda x: contrastive.nt_xent(*embed(encoder, x).chunk(2))
    if mode == "bank":

        def loss(x):
            logits = contrastive.similarity_logits(embed(encoder, x), keys, 0.5)
            return torch.nn.functional.cross_entropy(logits, torch.arange(len(x)))

        return attack.bank(encoder, a, keys, norm_bank="adv"), a, loss
    moved = attack.scalar(encoder, a, lambda x: contrastive.nt_xent_rows(encoder(x, "adv"), keys).mean(0))
    return moved, a, lambda x: contrastive.nt_xent(embed(encoder, x), keys)


def state_of(encoder):
    return (
        [m.training for m in encoder.modules()],
        [p.requires_grad for p in encoder.parameters()],
        [None if p.grad is None else p.grad.clone() for p in encoder.parameters()],
        {k: v.clone() for k, v in encoder.state_dict().items()},
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def after_one_draw():
    """Torch's global random state after the draw of one seed from the present one."""
    with torch.random.fork_rng(devices=[]):
        torch.randint(2**63 - 1, ())
        return torch.get_rng_state()


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(x, y) for x, y in zip(one, two, strict=True))
    return one == two


@pytest.mark.e2e
@pytest.mark.parametrize(("norm", "mode", "name"), VALID)
def test_every_valid_attack_stays_in_ball_and_box_raises_the_loss_and_leaves_no_trace(encoder, views, norm, mode, name):
    a, b = views
    if name in ("TIFGSM", "PIFGSM", "PIFGSMPP"):  # for RGB images only
        encoder = trained_encoder((3, 16, 16))
        a, b = (torch.rand(6, 3, 16, 16) for _ in range(2))
    encoder.backbone.bn1.eval()  # modes that differ must come back as they were
    for p in encoder.projector.parameters():
        p.grad = torch.ones_like(p)
    attack = InnerAttack(ThreatModel(norm, EPS[norm]), name, 5, SUITED.get(name, {}))
    before, drawn = state_of(encoder), after_one_draw()
    moved, x, loss = aim(attack, encoder, mode, a, b)
    assert same(before, state_of(encoder))
    assert torch.equal(torch.get_rng_state(), drawn)
    delta = (moved - x).flatten(1)
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert size.max() <= EPS[norm] + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad
    if name not in ("PGDRS", "PGDRSL2", "TPGD"):  # these add noise to the loss itself, or raise another
        assert loss(moved) >= loss(x)


def test_joint_pgd_is_plain_pgd_on_nt_xent(encoder, views):
    a, b = views
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 3, {"random_start": False, "alpha": 0.04})
    moved = torch.cat(attack.pairwise(encoder, a, b, norm_bank="adv"))
    encoder.double().eval()

    def loss(x):
        return contrastive.nt_xent(*encoder(x, "adv").chunk(2))

    expected = reference.pgd(loss, torch.cat([a, b]).double(), 0.1, 0.04, 3, start=0.0)
    assert (moved.double() - expected).abs().gt(1e-5).double().mean() < 0.01  # signs of gradients near 0 may differ


def test_scalar_cross_entropy_is_the_loss_itself(encoder, views):
    a, _ = views
    rows = torch.tensor([1e-4, 0.1, 1.0, 5.0, 50.0, 200.0])
    seen = {}

    def watch(model, *args, **kwargs):
        class Watch:
            def __call__(self, x, labels):
                seen["loss"] = torch.nn.functional.cross_entropy(model(x), labels, reduction="none")
                return x

        return Watch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchattacks, "PGD", watch)
        InnerAttack(ThreatModel("Linf", 0.1)).scalar(encoder, a, lambda x: rows + 0 * x.flatten(1).sum(1))
    torch.testing.assert_close(seen["loss"], rows, atol=1e-6, rtol=1e-4)


def test_state_is_restored_after_an_exception(encoder, views, attack):
    before, drawn = state_of(encoder), after_one_draw()

    def fail(x):
        encoder(x, "adv")
        raise KeyError

    with pytest.raises(KeyError):
        attack.scalar(encoder, views[0], fail)
    assert same(before, state_of(encoder))
    assert torch.equal(torch.get_rng_state(), drawn)


def linear(x, classes=5):
    """A linear classifier."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes)).eval()


WAYS = {
    "pairwise": lambda attack, encoder, a, b, **noise: attack.pairwise(encoder, a, b, **noise)[0],
    "bank": lambda attack, encoder, a, b, **noise: attack.bank(encoder, a, embed(encoder, b, None), **noise),
    "scalar": lambda attack, encoder, a, b, **noise: attack.scalar(
        encoder, a, lambda x: 1 + encoder(x).square().mean(1), **noise
    ),
    "classifier": lambda attack, encoder, a, b, **noise: attack.classifier(
        encoder, a, torch.arange(len(b)) % encoder.size, **noise
    ),
    "trades": lambda attack, encoder, a, b, **noise: attack.trades(
        encoder, a, encoder, embed(encoder, b, None), **noise
    ),
}
"""The adversarial images of every public method; the encoder is taken for a classifier."""
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.e2e
@every_way
def test_each_call_has_noise_of_its_own_and_a_seed_gives_it_again(encoder, views, attack, way):
    torch.manual_seed(1)
    first, second = (way(attack, encoder, *views) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(first, way(attack, encoder, *views))
    assert torch.equal(second, way(attack, encoder, *views))


@pytest.mark.e2e
@every_way
def test_a_generator_gives_the_noise_and_the_global_one_is_left_alone(encoder, views, attack, way):
    state = torch.get_rng_state()
    first, again, other = (way(attack, encoder, *views, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    generator = seeded(1)
    one, two = (way(attack, encoder, *views, generator=generator) for _ in range(2))
    assert torch.equal(one, first)
    assert not torch.equal(one, two)


@pytest.mark.e2e
@pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm in NORMS for name in ("APGD", "APGDT", "Square")])
def test_classes_with_a_seed_of_their_own_restart_at_random_as_well(views, norm, name):
    """torchattacks seeds these with 0 at each call, so that all restarts would be the same."""
    x, _ = views
    model, seen = linear(x), []
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([99.0, 0.0, 1.0, 2.0, 3.0]))  # nothing breaks it, so no search ends early
    y = torch.zeros(len(x), dtype=torch.long)
    model.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().clone()))

    def looked_at(kwargs, **noise):
        seen.clear()
        InnerAttack(ThreatModel(norm, 0.1), name, 3, kwargs).classifier(model, x, y, **noise)
        return torch.cat(seen)

    assert not torch.equal(looked_at({}), looked_at({}))
    assert torch.equal(looked_at({}, generator=seeded(3)), looked_at({}, generator=seeded(3)))
    assert torch.equal(looked_at({"seed": 0}), looked_at({"seed": 0}))  # as given


@pytest.mark.e2e
@every_way
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_are_the_same_where_autograd_is_off(encoder, views, attack, mode, way):
    """As in Lightning's validate and test."""
    outside = way(attack, encoder, *views, generator=seeded(0))
    before = state_of(encoder)
    with mode():
        inside = way(attack, encoder, *(view.clone() for view in views), generator=seeded(0))
    assert torch.equal(outside, inside)
    assert not inside.is_inference()
    assert same(before, state_of(encoder))


@pytest.mark.parametrize("name", ["Square", "FAB", "APGD"])
def test_other_classes_work_in_inference_mode(views, name):
    x, _ = views
    model, y = linear(x), torch.arange(6) % 5
    attack = InnerAttack(ThreatModel("Linf", 0.1), name, 5)
    outside = attack.classifier(model, x, y, generator=seeded(0))
    with torch.inference_mode():
        assert torch.equal(outside, attack.classifier(model, x.clone(), y.clone(), generator=seeded(0)))


@pytest.mark.parametrize("inside", [True, False])
def test_weights_and_constants_made_in_inference_mode_are_refused(encoder, views, attack, inside):
    with torch.inference_mode():
        model, constant = linear(views[0]), torch.rand(6, encoder.size)
    with torch.inference_mode(inside):
        for aimed in (
            lambda: attack.classifier(model, views[0], torch.zeros(6, dtype=torch.long)),
            lambda: attack.scalar(model, views[0], lambda x: 1 + model(x).square().sum(1)),
            lambda: attack.scalar(encoder, views[0], lambda x: 99 + (encoder(x) * constant).sum(1)),
        ):
            with pytest.raises(UsageError) as error:
                aimed()
            assert error.value.parameter == "model"
    assert all(p.requires_grad for p in [*model.parameters(), *encoder.parameters()])


@pytest.mark.e2e
@every_way
@pytest.mark.parametrize("shift", [-0.1, 1.1, 255.0, float("nan"), float("inf")])
def test_images_outside_the_unit_range_are_refused(encoder, views, attack, way, shift):
    a, b = views
    a[3, 0, 2, 2] = shift
    with pytest.raises(UsageError) as error:
        way(attack, encoder, a, b)
    assert error.value.allowed == (0, 1)


@pytest.mark.e2e
@every_way
@pytest.mark.parametrize(
    "change", [lambda x: (255 * x).byte(), lambda x: x[0], lambda x: x.numpy(), lambda x: x[..., None], lambda x: x > 0]
)
def test_what_is_no_batch_of_images_is_refused(encoder, views, attack, way, change):
    with pytest.raises(UsageError) as error:
        way(attack, encoder, change(views[0]), views[1])
    assert error.value.parameter in ("x", "a")


@every_way
def test_an_empty_batch_is_returned(encoder, views, attack, way):
    shares = []
    attack = dataclasses.replace(attack, on_moved=shares.append)
    moved = way(attack, encoder.eval(), *(view[:0] for view in views))
    assert moved.shape == (0, 1, 8, 8)
    assert shares == []


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(5, dtype=torch.long),
        torch.zeros(6),
        torch.zeros(6, 5),
        torch.full((6,), 5),
        torch.tensor([0, 1, 2, 3, 4, -100]),
        [0, 1, 2, 3, 4, 0],
        torch.zeros(6, dtype=torch.bool),
    ],
)
def test_labels_that_are_not_of_these_images_and_classes_are_refused(views, attack, y):
    with pytest.raises(UsageError) as error:
        attack.classifier(linear(views[0]), views[0], y)
    assert error.value.parameter == "y"


def test_labels_may_have_any_integer_type(views, attack):
    model, y = linear(views[0]), torch.arange(6) % 5
    expected = attack.classifier(model, views[0], y, generator=seeded(0))
    assert torch.equal(expected, attack.classifier(model, views[0], y.byte(), generator=seeded(0)))


class Changed(nn.Module):
    """A classifier whose output is not (B, classes)."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.reshape(1, -1),
        lambda z: z.flatten(),
        lambda z: z[..., None],
        lambda z: z[:, :1],
        lambda z: (z, z),
        lambda z: z[:1].expand(1, -1),
    ],
)
def test_models_that_do_not_give_logits_are_refused(views, attack, change):
    with pytest.raises(UsageError) as error:
        attack.classifier(Changed(linear(views[0]), change), views[0], torch.zeros(6, dtype=torch.long))
    assert error.value.parameter == "model"


def test_shapes_of_contrastive_inputs_are_checked(encoder, views, attack):
    a, b = views
    keys, two = embed(encoder, b), linear(a, 2)
    for parameter, aimed in (
        ("b", lambda: attack.pairwise(encoder, a, b[:5])),
        ("keys", lambda: attack.bank(encoder, a, keys[:5])),
        ("keys", lambda: attack.bank(encoder, a, keys[0])),
        ("model", lambda: attack.bank(encoder, a, keys[:, :2])),
        ("row_losses", lambda: attack.scalar(encoder, a, lambda x: encoder(x).mean())),
        ("row_losses", lambda: attack.scalar(encoder, a, encoder)),
        ("benign_logits", lambda: attack.trades(two, a, two, two(b[:5]))),
        ("logits", lambda: attack.trades(two, a, encoder, two(a))),
        ("name", lambda: dataclasses.replace(attack, name="FGSM").trades(two, a, two, two(a))),
        ("norm_bank", lambda: attack.pairwise(encoder, a, b, norm_bank="advs")),
    ):
        with pytest.raises(UsageError) as error:
            aimed()
        assert error.value.parameter == parameter, parameter


@pytest.mark.e2e
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (3, 3), (4, 1), (12, 3)])
@pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm in NORMS for name in attack_names(norm)])
def test_every_class_takes_any_number_of_classes_or_refuses_it(norm, name, channels, classes):
    torch.manual_seed(0)
    x, y = torch.rand(4, channels, 8, 8), torch.tensor([0, 1, 1, classes - 1])
    model = linear(x, classes)
    attack = InnerAttack(ThreatModel(norm, EPS[norm]), name, 3, SUITED.get(name, {}))
    fits = classes >= (4 if name == "APGDT" else 2)
    if name in ("TIFGSM", "PIFGSM", "PIFGSMPP") and channels == 1:
        parameter = "channels"
    elif not fits:
        parameter = "classes"
    else:
        moved = attack.classifier(model, x.contiguous(memory_format=torch.channels_last), y)
        assert (moved - x).abs().max() <= EPS[norm] + 1e-6
        return
    with pytest.raises(UsageError) as error:
        attack.classifier(model, x, y)
    assert error.value.parameter == parameter


def test_the_dlr_loss_takes_three_classes(views):
    x, _ = views
    for name in ("APGD", "UPGD"):
        attack = InnerAttack(ThreatModel("Linf", 0.1), name, 3, {"loss": "dlr"})
        attack.classifier(linear(x, 3), x, torch.zeros(6, dtype=torch.long))
        with pytest.raises(UsageError) as error:
            attack.classifier(linear(x, 2), x, torch.zeros(6, dtype=torch.long))
        assert (error.value.parameter, error.value.allowed) == ("classes", 3)


def test_step_size_and_scale(encoder, views):
    attack = InnerAttack(ThreatModel("Linf", 8 / 255), "PGD", 5)
    half = attack.scaled(0.5).pairwise(encoder, *views, norm_bank="adv")[0] - views[0]
    assert half.abs().max() <= 4 / 255 + 1e-6


def test_share_of_moved_rows_is_reported(encoder, views):
    shares = []
    threat = ThreatModel("Linf", 0.1)
    InnerAttack(threat, on_moved=shares.append).pairwise(encoder, *views, norm_bank="adv")
    model, y = linear(views[0]), torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        model[1].weight.zero_()  # no gradient
    still = InnerAttack(threat, kwargs={"random_start": False}, on_moved=shares.append)
    still.classifier(model, views[0], y)
    assert [s.item() for s in shares] == [1.0, 0.0]


def test_row_by_row_attacks_are_refused_where_rows_depend_on_each_other(encoder, views):
    attack = InnerAttack(ThreatModel("Linf", 0.1), "Square")
    with pytest.raises(
        UsageError, match="'Square' treats samples independently and cannot be used with mode 'pairwise'"
    ):
        attack.pairwise(encoder, *views)
    with pytest.raises(UsageError, match="'TIFGSM' takes images of 3 channels, not 1"):
        InnerAttack(ThreatModel("Linf", 0.1), "TIFGSM").pairwise(encoder, *views)
    with pytest.raises(UsageError, match="mode 'scalar'"):
        attack.scalar(encoder, views[0], lambda x: x.flatten(1).sum(1))


@pytest.mark.parametrize("generator", [3, "cpu", torch.Generator])
def test_what_is_no_generator_is_refused(views, attack, generator):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    model(views[0])
    with pytest.raises(UsageError, match="generator is .*; allowed is a torch.Generator") as error:
        attack.classifier(model, views[0], torch.zeros(len(views[0]), dtype=torch.long), generator=generator)
    assert error.value.parameter == "generator"


@pytest.mark.parametrize(
    ("parameter", "options"),
    [
        ("name", {"name": "PDG"}),
        ("name", {"name": "PGDL2"}),  # of another norm
        ("name", {"name": "AutoAttack"}),
        ("name", {"name": None}),
        *(("steps", {"steps": steps}) for steps in (0, -1, 2.5, True, None, "5")),
        ("scale", {"scale": 0}),
        ("scale", {"scale": 1.5}),
        ("kwargs", {"kwargs": {"alfa": 1}}),
        ("kwargs", {"kwargs": {"eps": 1}}),
        ("alpha", {"kwargs": {"alpha": 0}}),
        ("steps", {"kwargs": {"steps": 0}}),
        *(("threat", {"threat": threat}) for threat in (None, "Linf", 0.1)),
    ],
)
def test_mistakes_are_refused(parameter, options):
    with pytest.raises(UsageError) as error:
        InnerAttack(**{"threat": ThreatModel("Linf", 0.1)} | options)
    assert error.value.parameter == parameter
    assert error.value.allowed is not None


@pytest.mark.e2e
@pytest.mark.parametrize("name", attack_names("L2"))
def test_l2_classes_take_rgb_images_whose_gradients_are_channels_last(name):
    torch.manual_seed(0)
    model = Classifier(spec((3, 16, 16), "resnet18", {"channels": [8, 8, 8, 8]}, "0123456789")).eval()
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        y = model(x).argmax(1)
    moved = InnerAttack(ThreatModel("L2", 0.5), name, 3).classifier(model, x, y)
    assert (moved - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5
    assert moved.min() >= 0
    assert moved.max() <= 1


@pytest.mark.parametrize(("norm", "name"), [("Linf", "PGD"), ("Linf", "FGSM"), ("L2", "PGDL2"), ("L2", "CW")])
def test_a_targeted_attack_is_that_of_torchattacks(norm, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 5
    aims = (y + 2) % 5
    steps = 100 if name == "CW" else 10
    attack = InnerAttack(ThreatModel(norm, 0.3), name, steps, {"c": 10.0, "lr": 0.1} if name == "CW" else {})
    noise = torch.Generator().manual_seed(1)
    moved = attack.classifier(model, x, y, targets=aims, bounded=name != "CW", generator=noise)
    loss = nn.functional.cross_entropy
    assert loss(model(moved), aims) < loss(model(x), aims)
    if name == "FGSM":  # no noise
        theirs = torchattacks.FGSM(model, eps=0.3)
        theirs.set_mode_targeted_by_label(quiet=True)
        torch.testing.assert_close(moved, theirs(x, aims), atol=1e-6, rtol=0)


def test_classes_that_cannot_aim_and_targets_that_are_no_classes_are_refused():
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), torch.rand(4, 1, 8, 8), torch.arange(4)
    pgd = InnerAttack(ThreatModel("Linf", 0.1))
    for attack, targets, parameter in (
        (dataclasses.replace(pgd, name="APGD"), y, "targets"), (pgd, y + 3, "y"), (pgd, y[:2], "y"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as error:
            attack.classifier(model, x, y, targets=targets)
        assert error.value.parameter == parameter


@pytest.mark.parametrize("low", [-1.0, -0.01])
def test_losses_below_0_are_refused_in_the_batch_that_is_not_trusted(encoder, views, attack, low):
    """Their gradient would be 0, and the attack none."""

    def row_losses(x):
        return low + encoder(x, "adv").square().sum(1) * torch.tensor([0.0, 1, 1, 1, 1, 1])

    with pytest.raises(
        UsageError, match="row_losses down to -.*: allowed are losses above 0.*; add a constant"
    ) as error:
        attack.scalar(encoder, views[0], row_losses)
    assert (error.value.parameter, error.value.given) == ("row_losses", pytest.approx(low))
    dataclasses.replace(attack, trusted=True).scalar(encoder, views[0], row_losses)
    attack.scalar(encoder, views[0], lambda x: row_losses(x) - low - 1e-6)  # by rounding, as of equal embeddings


@pytest.mark.parametrize("bounded", [True, False])
def test_a_class_that_works_in_place_changes_only_its_copy(views, attack, bounded):
    @registry.ATTACKS.register("InPlace")
    class InPlace(torchattacks.attack.Attack):
        norms, whole_batch = ("Linf",), True

        def __init__(self, model, eps=0.1):
            super().__init__("InPlace", model)

        def forward(self, images, labels):
            labels.zero_()
            return images.add_(0.5)

    x, labels = views[0] / 4, torch.tensor([0, 1, 2, 3, 4, 0])
    before = x.clone(), labels.clone()
    try:
        moved = InnerAttack(ThreatModel("Linf", 0.1), "InPlace").classifier(linear(x), x, labels, bounded=bounded)
    finally:
        registry.ATTACKS.unregister("InPlace")
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])
    torch.testing.assert_close(moved, x + (0.1 if bounded else 0.5))
