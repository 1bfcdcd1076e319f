import pytest
import torch
import torchattacks

import reference
from acl_plugin import losses, routed_norm
from acl_plugin.backbones import Classifier
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import (
    ALL_VIEWS,
    NORMS,
    InnerAttack,
    ThreatModel,
    attack_names,
    require_unit_range,
)
from conftest import spec, trained_encoder

EPS = {"Linf": 0.1, "L2": 0.5}
SUITED = {  # arguments for small images
    "SPSA": {"nb_sample": 16, "max_batch_size": 16},
    "Square": {"n_queries": 50},
    "TIFGSM": {"len_kernel": 3},
}
VALID = [(n, v, name) for n in NORMS for v in ALL_VIEWS for name in attack_names(n, v)]


@pytest.fixture
def views():
    torch.manual_seed(1)
    return torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)


def embed(encoder, x, route="adv"):
    with torch.no_grad(), routed_norm.inference(encoder):
        return encoder(x, route)


def aim(attack, encoder, view, a, b):
    """The attacked image(s), and the attacked loss as a function of them, in eval mode."""
    keys = embed(encoder, b)
    if view == "joint":
        moved = torch.cat(attack.joint(encoder, a, b, route="adv"))
        return moved, torch.cat([a, b]), lambda x: losses.nt_xent(*embed(encoder, x).chunk(2))
    if view == "bank":

        def loss(x):
            logits = losses.similarity_logits(embed(encoder, x), keys, 0.5)
            return torch.nn.functional.cross_entropy(logits, torch.arange(len(x)))

        return attack.bank(encoder, a, keys, route="adv"), a, loss
    moved = attack.scalar(encoder, a, lambda x: losses.nt_xent_rows(encoder(x, "adv"), keys).mean(0))
    return moved, a, lambda x: losses.nt_xent(embed(encoder, x), keys)


def state_of(encoder):
    return (
        [m.training for m in encoder.modules()],
        [p.requires_grad for p in encoder.parameters()],
        [None if p.grad is None else p.grad.clone() for p in encoder.parameters()],
        {k: v.clone() for k, v in encoder.state_dict().items()},
        torch.get_rng_state(),
    )


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(x, y) for x, y in zip(one, two, strict=True))
    return one == two


@pytest.mark.parametrize(("norm", "view", "name"), VALID)
def test_every_valid_attack_stays_in_ball_and_box_raises_the_loss_and_leaves_no_trace(encoder, views, norm, view, name):
    a, b = views
    if name in ("TIFGSM", "PIFGSM", "PIFGSMPP"):  # for RGB images only
        encoder = trained_encoder((3, 16, 16))
        a, b = (torch.rand(6, 3, 16, 16) for _ in range(2))
    encoder.backbone.bn1.eval()  # modes that differ must come back as they were
    for p in encoder.projector.parameters():
        p.grad = torch.ones_like(p)
    attack = InnerAttack(ThreatModel(norm, EPS[norm]), name, 5, SUITED.get(name, {}))
    before = state_of(encoder)
    moved, x, loss = aim(attack, encoder, view, a, b)
    assert same(before, state_of(encoder))
    delta = (moved - x).flatten(1)
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert size.max() <= EPS[norm] + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad
    if name not in ("PGDRS", "PGDRSL2"):  # these add noise to the loss itself
        assert loss(moved) >= loss(x)


def test_joint_pgd_is_plain_pgd_on_nt_xent(encoder, views):
    a, b = views
    attack = InnerAttack(ThreatModel("Linf", 0.1), "PGD", 3, {"random_start": False, "alpha": 0.04})
    moved = torch.cat(attack.joint(encoder, a, b, route="adv"))
    encoder.double().eval()

    def loss(x):
        return losses.nt_xent(*encoder(x, "adv").chunk(2))

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
    before = state_of(encoder)

    def fail(x):
        encoder(x, "adv")
        raise KeyError

    with pytest.raises(KeyError):
        attack.scalar(encoder, views[0], fail)
    assert same(before, state_of(encoder))


def test_noise_is_a_function_of_the_global_state(encoder, views, attack):
    def moved(seed):
        torch.manual_seed(seed)
        return attack.joint(encoder, *views, route="adv")[0]

    assert torch.equal(moved(1), moved(1))
    assert not torch.equal(moved(1), moved(2))


def test_step_size_and_scale(encoder, views):
    attack = InnerAttack(ThreatModel("Linf", 8 / 255), "PGD", 5)
    assert attack._arguments(attack.threat, 10)["alpha"] == pytest.approx(2 / 255)
    half = attack.scaled(0.5).joint(encoder, *views, route="adv")[0] - views[0]
    assert half.abs().max() <= 4 / 255 + 1e-6


def test_share_of_moved_rows_is_reported(encoder, views):
    shares = []
    threat = ThreatModel("Linf", 0.1)
    InnerAttack(threat, on_moved=shares.append).joint(encoder, *views, route="adv")
    InnerAttack(threat, steps=1, kwargs={"random_start": False, "alpha": 0.0}, on_moved=shares.append).joint(
        encoder, *views, route="adv"
    )
    assert [s.item() for s in shares] == [1.0, 0.0]


def test_row_by_row_attacks_are_refused_where_rows_depend_on_each_other(encoder, views):
    attack = InnerAttack(ThreatModel("Linf", 0.1), "Square")
    with pytest.raises(UsageError, match="'Square' moves each row for itself and is not valid for the 'joint' view"):
        attack.joint(encoder, *views)
    with pytest.raises(UsageError, match="'TIFGSM' takes images of 3 channels, not 1"):
        InnerAttack(ThreatModel("Linf", 0.1), "TIFGSM").joint(encoder, *views)
    with pytest.raises(UsageError, match="'scalar' view"):
        attack.scalar(encoder, views[0], lambda x: x.flatten(1).sum(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InnerAttack(ThreatModel("Linf", 0.1), "PDG"), "unknown attack 'PDG'; the nearest: PGD"),
        (lambda: InnerAttack(ThreatModel("L2", 0.1), "PGD"), "attack 'PGD' is not for L2; allowed: .*PGDL2"),
        (lambda: InnerAttack(ThreatModel("Linf", 0.1), "AutoAttack"), "unknown attack 'AutoAttack'"),
        (lambda: InnerAttack(ThreatModel("Linf", 0.1), kwargs={"alfa": 1}), "'alfa'; the nearest: alpha"),
        (lambda: InnerAttack(ThreatModel("Linf", 0.1), kwargs={"eps": 1}), "argument of attack 'PGD': 'eps'"),
        (lambda: ThreatModel("L1", 0.1), "unknown norm 'L1'"),
        (lambda: ThreatModel("Linf", 0.0), "eps 0: allowed is a number above 0"),
        (lambda: ThreatModel("Linf", -1.0), "eps -1"),
        (lambda: ThreatModel("Linf", 8.0), "eps 8: .*at most 1 for Linf"),
        (lambda: ThreatModel("Linf", float("nan")), "eps nan"),
        (lambda: ThreatModel.parse("Linf", "8/0"), "eps '8/0'"),
        (lambda: ThreatModel.parse("Linf", "eight"), "allowed is a number or a fraction such as 8/255"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_eps_as_a_number_or_a_fraction():
    assert ThreatModel.parse("Linf", "8/255").eps == ThreatModel.parse("Linf", 8 / 255).eps == 8 / 255
    assert ThreatModel.parse("L2", 2).eps == 2


@pytest.mark.parametrize("bad", [-0.1, 1.1, 255.0, float("nan")])
def test_images_outside_the_unit_range_are_refused(bad):
    x = torch.rand(2, 1, 4, 4)
    require_unit_range(x)
    x[0, 0, 0, 0] = bad
    with pytest.raises(UsageError, match=r"allowed is \[0, 1\]; normalise inside the model"):
        require_unit_range(x)


def test_projection_is_into_ball_and_box():
    x = torch.tensor([0.5, 0.95, 0.0, 0.2]).view(1, 1, 2, 2)
    far = torch.tensor([0.9, 2.0, -1.0, 0.25]).view(1, 1, 2, 2)
    expected = torch.tensor([0.6, 1.0, 0.0, 0.25]).view(1, 1, 2, 2)
    torch.testing.assert_close(ThreatModel("Linf", 0.1).project(far, x), expected)
    assert (ThreatModel("L2", 0.1).project(far, x) - x).norm() <= 0.1 + 1e-6


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
