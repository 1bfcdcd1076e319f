import pytest
import torch
import torch.nn.functional as F

from acl_plugin.theory.divergence_estimates import null_value
from acl_plugin.theory.label_shift import chosen_decays, label_shift

pytestmark = pytest.mark.numeric


def measured(benign, adversarial, labels, classes):
    decays = chosen_decays(benign, adversarial, labels, classes, seed=0)

    def of(p, q):
        return label_shift(p, q, labels, classes, decays, seed=0)

    return of(benign, adversarial), null_value(of, benign, adversarial, seed=0)


@pytest.mark.e2e
def test_label_shift_is_that_of_two_known_distributions():
    torch.manual_seed(0)
    labels = torch.arange(400) % 2
    features = torch.randn(400, 1) * 0.3 + 2 * labels.unsqueeze(1)
    same, _ = measured(features, features + 0.05 * torch.randn(400, 1), labels, 2)
    turned, null = measured(features, 2 - features, labels, 2)  # labels change sides
    assert same.value < 0.15
    assert turned.value == pytest.approx(2, abs=0.15)
    assert null < 0.5


@pytest.mark.e2e
@pytest.mark.parametrize("n", [100, 500, 2000])
def test_overlapping_classes_without_a_shift_read_about_their_null_value(n):
    """The two probes of fixed weight decay differ by 1.35 to 1.53 of 2 here."""
    torch.manual_seed(0)
    labels = torch.arange(n) % 10
    p, q = (torch.randn(n, 32) + 0.3 * F.one_hot(labels, 32) for _ in range(2))
    found, null = measured(p, q, labels, 10)
    assert found.value < 0.35
    assert found.value == pytest.approx(null, rel=0.5, abs=0.03)
    assert found.rows.shape == (n,)
