import torch

from acl_plugin.training.metrics import EpochMeans


def test_means_of_what_was_added_in_the_epoch():
    means = EpochMeans()
    means.begin(0)
    for value in (1.0, 2.0, 6.0):
        means.add({"loss": torch.tensor(value)})
    means.add({"seldom": torch.tensor(5.0)})
    assert {k: v.item() for k, v in means.means().items()} == {"loss": 3.0, "seldom": 5.0}
    means.begin(0)  # the same epoch goes on
    assert means.means()["loss"] == 3
    means.begin(1)
    assert means.means() == {}


def test_a_mean_of_bfloat16_is_that_of_its_values():
    means = EpochMeans()
    means.begin(0)
    for _ in range(2000):
        means.add({"loss": torch.tensor(10.5, dtype=torch.bfloat16)})
    assert means.means()["loss"] == 10.5


def test_an_interrupted_epoch_resumes():
    whole, first, second = EpochMeans(), EpochMeans(), EpochMeans()
    values = torch.rand(7)
    for means in (whole, first):
        means.begin(3)
    for value in values:
        whole.add({"loss": value})
    for value in values[:4]:
        first.add({"loss": value})
    second.load_state_dict(first.state_dict())
    second.begin(3)
    for value in values[4:]:
        second.add({"loss": value})
    assert torch.equal(whole.means()["loss"], second.means()["loss"])
    third = EpochMeans()
    third.load_state_dict(first.state_dict())
    third.begin(4)  # the checkpoint was of the end of epoch 3
    assert third.means() == {}
