import inspect

import pyautoattack
import pytest
import torch
from torch import nn

from acl_plugin.compat.autoattack_adapter import AutoAttack


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    x = torch.rand(12, 3, 4, 4)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def shorten(adversary):
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 5
    adversary.square.n_queries = 50
    return adversary


@pytest.mark.e2e
def test_same_images_as_pyautoattack_for_the_same_seed(problem):
    model, x, y = problem
    ours = shorten(AutoAttack(model, norm="Linf", eps=0.03, seed=3, verbose=False, device="cpu"))
    theirs = shorten(pyautoattack.AutoAttack(model, norm="Linf", eps=0.03, seed=3, device="cpu"))
    x_adv, y_adv = ours.run_standard_evaluation(x, y, bs=5, return_labels=True)
    expected, labels = theirs.run_standard_evaluation(x, y, batch_size=5)
    assert torch.equal(x_adv, expected)
    assert torch.equal(y_adv, labels)
    assert torch.equal(ours.run_standard_evaluation(x, y, bs=5), expected)


def test_custom_attacks_individually(problem):
    model, x, y = problem
    adversary = shorten(
        AutoAttack(model, eps=0.03, seed=0, verbose=False, attacks_to_run=["apgd-ce", "square"], version="custom")
    )
    results = adversary.run_standard_evaluation_individual(x, y, bs=6)
    assert list(results) == ["apgd-ce", "square"]
    assert all(r.shape == x.shape for r in results.values())
    assert adversary.attacks_to_run == ["apgd-ce", "square"]
    labeled = adversary.run_standard_evaluation_individual(x, y, bs=6, return_labels=True)
    assert torch.equal(labeled["square"][0], results["square"])


def test_progress_goes_to_the_log_and_instances_do_not_share_it(problem, tmp_path, capsys):
    model, x, y = problem
    for name in ("one", "two"):
        adversary = AutoAttack(model, eps=0.03, verbose=True, version="custom", attacks_to_run=["apgd-ce"],
                               log_path=tmp_path / name, seed=0)  # fmt: skip
        shorten(adversary).run_standard_evaluation(x, y)
    logs = [(tmp_path / name).read_text() for name in ("one", "two")]
    assert all(log.count("initial accuracy: 100.00%") == 1 for log in logs)
    assert capsys.readouterr().out.count("initial accuracy: 100.00%") == 2


def test_signature_is_the_original_one():
    names = list(inspect.signature(AutoAttack).parameters)
    expected = "model norm eps seed verbose attacks_to_run version is_tf_model device log_path"
    assert names == expected.split()
    with pytest.raises(ValueError, match="unless you use version='custom'"):
        AutoAttack(nn.Identity(), attacks_to_run=["square"])
    with pytest.raises(ValueError, match="TensorFlow"):
        AutoAttack(nn.Identity(), is_tf_model=True)
