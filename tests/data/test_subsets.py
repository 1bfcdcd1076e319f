from itertools import pairwise

import pytest
import torch

from acl_plugin.data.images import Images
from acl_plugin.data.subsets import missing_classes, stratified, subset_rows
from acl_plugin.errors import UsageError

pytestmark = pytest.mark.numeric

SORTED = torch.arange(4).repeat_interleave(torch.tensor([40, 40, 20, 100]))


@pytest.mark.parametrize("n", [1, 2, 7, 20, 50, 199])
def test_every_class_has_its_share(n):
    rows = subset_rows(SORTED, n)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == n
    counts = SORTED[rows].bincount(minlength=4)
    expected = SORTED.bincount() * n / len(SORTED)
    assert (counts - expected).abs().max() <= 1


def test_the_order_in_which_classes_are_stored_does_not_matter():
    shuffled = SORTED[torch.randperm(200, generator=torch.Generator().manual_seed(3))]
    for labels in (SORTED, SORTED.flip(0), shuffled):
        assert labels[subset_rows(labels, 20)].bincount().tolist() == [4, 4, 2, 10]


def test_a_smaller_subset_is_part_of_a_larger_one():
    sets = [set(subset_rows(SORTED, n).tolist()) for n in range(1, 201)]
    assert all(small < large for small, large in pairwise(sets))


def test_it_is_the_same_at_every_start_and_another_with_another_seed():
    assert subset_rows(SORTED, 20).tolist() == subset_rows(SORTED, 20).tolist()
    assert subset_rows(SORTED, 20).tolist() != subset_rows(SORTED, 20, seed=1).tolist()


def test_all_images_stay_in_their_order():
    assert subset_rows(SORTED, 200).tolist() == list(range(200))


def test_missing_classes_are_named():
    assert missing_classes(torch.tensor([0, 2, 2]), ("cat", "dog", "emu", "fox")) == ["dog", "fox"]


def test_stratified_takes_a_share_of_each_class():
    chosen = stratified(SORTED, 0.1, 0)
    assert SORTED[chosen].bincount().tolist() == [4, 4, 2, 10]
    assert stratified(torch.tensor([0, 1]), 0.1, 0).all()  # one of each class at least


def test_pixels_that_are_no_tensor_are_named():
    rows = torch.arange(2)
    with pytest.raises(UsageError, match="`pixels` of type ndarray") as error:
        Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8).numpy(), rows, rows, levels=255)
    assert error.value.parameter == "pixels"
