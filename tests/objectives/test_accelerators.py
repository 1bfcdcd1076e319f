"""What needs no accelerator to be seen of one: a step uses nothing that lies on the CPU, and never waits for a value.

PyTorch's fake tensors have shapes and a device, and no values: an operation on two devices raises, and so does whatever
asks for a value. The device is one that PyTorch lets Python name; no kernel runs.
"""

from contextlib import nullcontext

import pytest
import torch
from test_base import SIX, made
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from acl_plugin import available
from acl_plugin.attacks import inner_attack
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.batches import ShuffledBatches
from acl_plugin.data.images import Images
from acl_plugin.objectives.base import Views
from acl_plugin.runtime import seeding

if not hasattr(backend_registration, "_DummyBackendModule"):
    pytest.skip("this version of PyTorch lets Python name no device", allow_module_level=True)


class Backend(backend_registration._DummyBackendModule):
    """What torch.autocast asks a device for."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("pretended", Backend())
DEVICE = torch.device("pretended", 0)


class NoWait(TorchDispatchMode):
    """Refuses copies between CPU and device that hold the CPU up until the device has done all its work."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "cpu":
            return 1.0  # a value that lies on the CPU, where a real tensor would have it
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            there = kwargs.get("device")
            assert there is None or torch.device(there).type == args[0].device.type, f"{args[0].device} -> {there}"
        return func(*args, **kwargs)


def moved(module, fake):
    """Parameters and buffers on the device; other tensors stay on the CPU, as with ``module.to``."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(like(value), value.requires_grad)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else like(value)
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                setattr(part, name, fake.from_tensor(value))


def like(value):
    return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_a_step_stays_on_the_device(name, settings_of, monkeypatch):
    monkeypatch.setattr(inner_attack, "noise_seed", lambda generator: 0)  # of generators, which a fake has none of
    monkeypatch.setattr(seeding, "isolated_rng", lambda *seed_and_device: nullcontext())
    objective, model = made(name, settings_of(name))
    objective.check_images(SIX)
    objective.on_epoch(0, 2)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        moved(nn.ModuleList([model, objective]), fake)
        optimizer = torch.optim.AdamW(objective.param_groups(model))
        images, rows = torch.rand(6, 1, 8, 8, device=DEVICE), torch.arange(6, device=DEVICE)
        views = Views(images=images, rows=rows, **dict.fromkeys(objective.needs, images))
        with NoWait():
            terms = objective.backward(model, views, InnerAttack(ThreatModel("Linf", 0.1), "PGD", 1, trusted=True))
            optimizer.step()
    assert {value.device for value in terms.parts.values()} == {DEVICE}


def test_batches_are_chosen_on_the_device():
    images = Images(*(torch.zeros(8, device="meta") for _ in range(3)), levels=255, hashes=torch.arange(8))
    assert ShuffledBatches(images, 4, seed=0, epoch=0).order.device == images.pixels.device
