import copy

import pytest
import torch
from torch import nn

from acl_plugin.models.copies import copied

pytestmark = pytest.mark.numeric


class Keeping(nn.Module):
    """Keeps what it computes, in several places."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        self.last = self.linear(x)
        self.all = [{"last": (self.last, 1)}, {"square": self.last.square()}]
        return self.last


@pytest.mark.filterwarnings("ignore:`torch.nn.utils")
@pytest.mark.parametrize(
    "build",
    [
        Keeping,
        lambda: nn.Sequential(nn.ReLU(), Keeping()),
        lambda: nn.utils.spectral_norm(nn.Linear(3, 2)),
        lambda: nn.utils.weight_norm(nn.Linear(3, 2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    ],
    ids=["activations", "activations inside", "old spectral norm", "old weight norm", "weight norm"],
)
def test_a_used_module_is_copied(build):
    torch.manual_seed(0)
    module, x = build(), torch.rand(4, 3)
    module(x).sum().backward()
    twin = copied(module)
    one, other = module.state_dict(), twin.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not {id(p) for p in module.parameters()} & {id(p) for p in twin.parameters()}
    module.eval(), twin.eval()
    assert torch.equal(twin(x), module(x))
    twin(x).sum().backward()
    copy.deepcopy(copied(twin))  # leaves only


def test_what_modules_share_stays_shared():
    first = Keeping()
    second = nn.Sequential(first)
    first(torch.rand(4, 3))
    one, other = copied((first, second))
    assert other[0] is one
    assert one.all[0]["last"][0] is one.last
    assert torch.equal(one.last, first.last)
    assert not one.last.requires_grad
