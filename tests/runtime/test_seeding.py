import random

import numpy as np
import pytest
import torch

from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import isolated_rng, mixed_seed


def test_mixed_seeds_differ():
    numbers = [mixed_seed(*n) for n in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= n < 2**63 for n in numbers)


def test_isolated_rng_starts_from_its_seed_and_restores_the_global_state():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), isolated_rng(3):
        one = torch.rand(3)
        raise KeyError
    assert torch.equal(state, torch.get_rng_state())
    with isolated_rng(3):
        assert torch.equal(one, torch.rand(3))


def test_isolated_rng_seeds_and_restores_python_and_numpy():
    before, drawn = (random.getstate(), np.random.get_state()[1].copy()), []
    for seed in (3, 3, 4):
        with isolated_rng(seed):
            drawn.append((random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]
    assert not set(drawn[1]) & set(drawn[2])
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize(("has_cuda", "expected"), [(True, [3, 4, 5]), (False, [4])])
def test_private_leaves_the_seed_of_a_cuda_to_come(has_cuda, expected):
    """torch.manual_seed also seeds CUDA, once it is initialized."""
    seeds = []
    torch.manual_seed(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: False)
        patch.setattr(torch.cuda, "is_available", lambda: has_cuda)
        patch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        with isolated_rng(3):
            torch.manual_seed(4)  # as APGD does
    assert seeds == expected


def test_the_state_of_a_cpu_is_restored_where_there_is_a_gpu():
    with isolated_rng(3):
        states = seeding.state(torch.device("cpu"))
        expected = torch.rand(3)
        seeding.restore(states, torch.device("cuda"))  # touches no GPU, as there is no state for it
        assert torch.equal(torch.rand(3), expected)
