import math

import pytest
import torch
import torch.nn.functional as F

import reference
from acl_plugin.errors import UsageError
from acl_plugin.losses import contrastive

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", [2, 3, 7])
def test_nt_xent_equals_the_papers_loop_in_value_and_gradient(rows, temperature):
    torch.manual_seed(rows)
    za, zb = (torch.randn(rows, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = reference.nt_xent(za, zb, temperature)
    value = contrastive.nt_xent(za, zb, temperature)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(value, (za, zb)), torch.autograd.grad(expected, (za, zb)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_nt_xent_of_equal_embeddings_is_log_2b_minus_1():
    z = torch.ones(6, 4)
    assert contrastive.nt_xent(z, z).item() == pytest.approx(math.log(11), abs=1e-5)
    assert contrastive.collapsed_nce(6) == math.log(11)


def test_nt_xent_closed_form_of_orthogonal_pairs():
    # partners equal, all others orthogonal: -1/tau + log(e^(1/tau) + 2B - 2)
    z, tau = torch.eye(4), 0.5
    expected = -1 / tau + math.log(math.exp(1 / tau) + 6)
    assert contrastive.nt_xent(z, z, tau).item() == pytest.approx(expected, abs=1e-6)


def test_nt_xent_does_not_depend_on_scale_or_on_which_view_is_first():
    torch.manual_seed(0)
    za, zb = torch.randn(5, 3), torch.randn(5, 3)
    assert contrastive.nt_xent(za, zb).item() == pytest.approx(contrastive.nt_xent(7 * zb, 0.1 * za).item(), abs=1e-6)


def test_rows_are_positive_and_average_to_the_loss():
    torch.manual_seed(0)
    za, zb = torch.randn(5, 3), torch.randn(5, 3)
    rows = contrastive.nt_xent_rows(za, zb)
    assert rows.shape == (2, 5)
    assert (rows > 0).all()
    assert rows.mean().item() == pytest.approx(contrastive.nt_xent(za, zb).item(), abs=1e-6)


def test_joint_cross_entropy_is_nt_xent_in_value_and_gradient():
    torch.manual_seed(0)
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    logits, partners = contrastive.pairwise_logits(z, 0.5)
    loss, expected = F.cross_entropy(logits, partners), reference.nt_xent(z[:4], z[4:], 0.5)
    assert logits.isfinite().all()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(loss, z), torch.autograd.grad(expected, z)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_losses_are_float32_under_autocast():
    z = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive.nt_xent(z, z.bfloat16()).dtype == torch.float32


def embeddings(views, images=3, size=5, dtype=torch.float64):
    torch.manual_seed(1)
    return [torch.randn(images, size, dtype=dtype, requires_grad=True) for _ in range(views)]


def assert_same(ours, theirs, z):
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for one, two in zip(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.e2e
@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("detached", [False, True])
def test_multi_view_nce_is_the_loop_in_value_and_gradient(views, detached):
    z = embeddings(views)
    ours = contrastive.multi_view_nce(z, 0.4, detached=detached)
    uniform = 1 / (views * (views - 1))
    assert_same(ours, reference.multi_view_nce(z, 0.4, lambda a, b: uniform, lambda a, b: detached), z)


def test_weights_and_stopped_gradients_are_by_pair():
    z = embeddings(3)
    weights = torch.tensor([[9.0, 0.1, 0.2], [0.3, 9.0, 0.0], [0.5, 0.6, 9.0]], dtype=torch.float64)
    stopped = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    ours = contrastive.multi_view_nce(z, 0.4, weights=weights, detached=stopped)
    assert_same(ours, reference.multi_view_nce(z, 0.4, lambda a, b: weights[a, b], lambda a, b: stopped[a, b]), z)


def test_two_views_are_nt_xent_and_their_rows_average_its_rows():
    a, b = embeddings(2, dtype=torch.float32)
    rows = contrastive.multi_view_nce_rows([a, b], 0.4)
    torch.testing.assert_close(rows, contrastive.nt_xent_rows(a, b, 0.4).mean(0))


@pytest.mark.parametrize("views", [2, 3, 4])
def test_equal_and_orthogonal_embeddings_have_closed_forms(views):
    same = [torch.ones(3, 4)] * views
    assert contrastive.multi_view_nce(same, 0.5).item() == pytest.approx(math.log(views * 3 - 1), abs=1e-6)
    assert contrastive.collapsed_nce(3, views) == math.log(views * 3 - 1)
    # orthogonal images, identical views: V - 1 positives at e^2, and V (B - 1) negatives at e^0
    apart = [torch.eye(3)] * views
    expected = math.log((views - 1) * math.exp(2) + 2 * views) - 2
    assert contrastive.multi_view_nce(apart, 0.5).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("code", ["paper", "rocl", "advcl"])
def test_hard_negatives_of_equal_embeddings_have_a_closed_form(code):
    hard = contrastive.HardNegatives(tau_plus=0.2, beta=0.7, code=code)
    value = contrastive.multi_view_nce([torch.ones(5, 4)] * 3, 0.5, hard=hard).item()
    assert contrastive.collapsed_nce(5, 3, hard) == pytest.approx(value, abs=1e-5)
    assert value != pytest.approx(math.log(14), abs=1e-3)


def test_stopped_keys_have_the_finite_difference_of_the_anchors():
    z = embeddings(2)
    (gradient,) = torch.autograd.grad(contrastive.multi_view_nce(z, 0.5, detached=True), z[:1])
    step = torch.zeros_like(z[0])
    step[1, 2] = 1e-6

    def anchored(a):  # a moves as an anchor, the keys stay
        pairs = [(a, z[0], z[1]), (z[1], z[1], z[0])]
        total = 0.0
        for anchor, own_keys, positive in pairs:
            for n in range(3):
                keys = [own_keys[m] for m in range(3) if m != n] + [positive[m] for m in range(3)]
                s = torch.stack([reference.cosine(anchor[n], k) / 0.5 for k in keys])
                total = total - reference.cosine(anchor[n], positive[n]) / 0.5 + torch.logsumexp(s, 0)
        return (total / 6).item()

    with torch.no_grad():
        slope = (anchored(z[0] + step) - anchored(z[0] - step)) / 2e-6
    assert gradient[1, 2].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.e2e
@pytest.mark.parametrize("code", ["paper", "rocl", "advcl"])
@pytest.mark.parametrize(("tau_plus", "beta"), [(0.1, 1.0), (0.0, 0.5), (0.9, 1.0)])
def test_hard_negatives_are_the_loop(code, tau_plus, beta):
    z = embeddings(3)
    ours = contrastive.multi_view_nce(z, 0.5, hard=contrastive.HardNegatives(tau_plus, beta, code))
    assert_same(ours, reference.hard_negative_nce(z, 0.5, tau_plus, beta, code), z)


@pytest.mark.parametrize("code", ["paper", "rocl", "advcl"])
@pytest.mark.parametrize(("tau", "beta"), [(0.05, 4.0), (0.02, 1.0), (0.01, 0.0), (0.07, 30.0)])
def test_hard_negatives_have_a_gradient_where_their_exponentials_overflow(code, tau, beta):
    hard, found = contrastive.HardNegatives(0.1, beta, code), []
    for dtype in (torch.float64, torch.float32):
        z = [each.detach().to(dtype).requires_grad_() for each in embeddings(2)]
        loss = contrastive.multi_view_nce(z, tau, hard=hard)
        found.append((loss, *torch.autograd.grad(loss, z)))
    for exact, ours in zip(*found, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"tau_plus": 1.5}, "tau_plus"), ({"tau_plus": 1.0}, "tau_plus"), ({"tau_plus": -0.1}, "tau_plus"),
     ({"tau_plus": 0.1, "beta": -1}, "beta"), ({"tau_plus": 0.1, "beta": float("nan")}, "beta"),
     ({"tau_plus": 0.1, "code": "papr"}, "code")],
)  # fmt: skip
def test_hard_negatives_out_of_range_are_refused(given, named):
    with pytest.raises(UsageError) as refused:
        contrastive.HardNegatives(**given)
    assert refused.value.parameter == named


def test_hard_negatives_that_are_not_hard_have_a_closed_form():
    """tau+ = 0 and beta = 0: the positive's mean and a plain sum over negatives."""
    apart = [torch.eye(3)] * 2
    loss = contrastive.multi_view_nce(apart, 0.5, hard=contrastive.HardNegatives(0.0, 0.0))
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 4) - 2, abs=1e-6)


def test_cosine_distance_and_batch_distribution():
    x, y = torch.tensor([[1.0, 0], [2, 0], [1, 1]]), torch.tensor([[3.0, 0], [-1, 0], [0, 5]])
    torch.testing.assert_close(contrastive.cosine_distance_rows(x, y), torch.tensor([0, 2, 1 - 0.5**0.5]))
    law = contrastive.log_batch_softmax(x, y, 0.5).exp()
    torch.testing.assert_close(law, reference.batch_law(x, y, 0.5))
    assert law.sum().item() == pytest.approx(1)


def test_the_diagonal_of_the_weights_counts_for_nothing():
    """Equal embeddings give log(VB - 1) for any weights."""
    for weights in (torch.ones(2, 2), torch.tensor([[5.0, 1.0], [2.0, 7.0]])):
        scale, term = contrastive.weighted_nce([torch.ones(8, 4)] * 2, 0.5, 1.0, weights)
        assert term.item() == pytest.approx(math.log(15), abs=1e-5)
        assert scale == pytest.approx((weights.sum() - weights.trace()).item())


def test_fewer_than_two_views_are_refused():
    for views in ([], [torch.rand(3, 2)]):
        with pytest.raises(UsageError, match="two views"):
            contrastive.multi_view_nce_rows(views)


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan")])
@pytest.mark.parametrize("loss", [contrastive.nt_xent, lambda a, b, tau: contrastive.multi_view_nce([a, b], tau)])
def test_a_temperature_that_is_not_above_0_is_refused(loss, temperature):
    with pytest.raises(UsageError) as error:
        loss(torch.rand(3, 2), torch.rand(3, 2), temperature)
    assert error.value.parameter == "temperature"


@pytest.mark.parametrize("name", ["weights", "detached"])
@pytest.mark.parametrize("given", [torch.ones(2), torch.ones(3, 3), [[0, 1], [1, 0]], 1.0])
def test_a_weight_is_of_a_pair_of_views(name, given):
    with pytest.raises(UsageError) as error:
        contrastive.multi_view_nce([torch.rand(3, 2), torch.rand(3, 2)], **{name: given})
    assert error.value.parameter == name
    assert "\n" not in str(error.value)
