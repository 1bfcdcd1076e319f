"""Gradient checkpointing: the same bits with fewer saved activations, whatever bank, mode or objective."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from acl_plugin import available, load_classifier, load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingStopped, UsageError
from acl_plugin.models import norm_banks, wide_resnet  # noqa: F401 (importing it registers its networks)
from acl_plugin.models.recompute import _Recomputed, blocks, recompute_blocks
from acl_plugin.models.wrapped import wrap_encoder
from acl_plugin.probing.protocols import probe
from acl_plugin.runtime import seeding
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

pytestmark = pytest.mark.numeric

DROPS = {"drop_path_rate": 0.1}
NETWORKS = {
    "resnet10t": (4, DROPS),
    "resnet18": (8, {**DROPS, "channels": (16, 32, 64, 128)}),
    "vit_tiny_patch16_224": (3, {**DROPS, "depth": 3, "embed_dim": 48, "img_size": 32, "patch_size": 8}),
    "convnext_atto": (5, {**DROPS, "depths": (1, 1, 2, 1), "dims": (8, 8, 8, 8)}),
    "efficientnet_lite0": (16, DROPS),
    "wrn28_10": (6, {"depth": 16, "width": 1}),
    "densenet121": (4, {"drop_rate": 0.1, "growth_rate": 8, "block_config": (3, 3, 3, 3)}),
}
"""Number of blocks and arguments by network."""


def backward(network, x, norm_bank):
    """Return the output, all gradients and the number of saved numbers of a forward and a backward pass."""
    saved = []
    given = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        torch.manual_seed(1)
        with norm_banks.active(network, norm_bank):
            output = network(given)
    output.square().sum().backward()
    gradients = [p.grad for p in network.parameters()]
    return [output.detach(), given.grad, *gradients, *network.buffers()], sum(saved)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.e2e
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["training", "eval", "attack"])
def test_values_gradients_and_statistics_are_the_same_with_fewer_saved(name, mode):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, **NETWORKS[name][1])
    plain = norm_banks.add_banks(plain, ("clean", "adv"))
    other = copy.deepcopy(plain)
    recompute_blocks(other)
    recompute_blocks(other)  # the second call changes nothing
    assert len(blocks(other)) == NETWORKS[name][0]
    assert other.state_dict().keys() == plain.state_dict().keys()
    for network in (plain, other):
        network.train(mode == "training").requires_grad_(mode != "attack")
    x = torch.rand(4, 3, 32, 32)
    for norm_bank in ("adv", "clean"):
        (expected, all_saved), (found, saved) = (backward(network, x, norm_bank) for network in (plain, other))
        assert_same(found, expected)
        assert saved < 0.6 * all_saved


def test_the_second_pass_is_in_the_state_of_the_first(encoder):
    """Banks, modes and frozen weights may change between forward and backward pass."""
    other = copy.deepcopy(encoder)
    recompute_blocks(other.backbone)
    x, gradients = torch.rand(4, 1, 8, 8), []
    for network in (encoder, other):
        network.train()
        with norm_banks.inference(network):
            in_eval = network.features(given := x.clone().requires_grad_(), "adv")
        with norm_banks.frozen_statistics(network):
            frozen = network.features(x, "clean")
        with norm_banks.active(network.backbone, "adv"):
            network.eval().requires_grad_(False)
            (in_eval.sum() + frozen.square().sum()).backward()
        network.train().requires_grad_(True)
        gradients.append([given.grad, *(p.grad for p in network.parameters()), *network.buffers()])
    assert_same(gradients[1], gradients[0])


def test_copies_and_exports_are_independent_and_passes_without_gradient_are_plain(encoder):
    recompute_blocks(encoder.backbone)
    x = torch.rand(4, 1, 8, 8)
    copied = copy.deepcopy(encoder)
    with torch.no_grad():
        before = encoder.eval().features(x, "adv")
        for p in encoder.parameters():
            p.zero_()
        assert torch.equal(copied.eval().features(x, "adv"), before)
    exported = norm_banks.export(copied.backbone, "adv")
    assert torch.equal(exported(copied.preprocess(x)), before)


@pytest.mark.e2e
@pytest.mark.parametrize("name", available())
def test_every_objective_has_the_same_gradient(name, options_of):
    config = preset("digits", **TINY | options_of(name))
    images, found = datasets.load(config.data), []
    for given in (config, config.replace(grad_checkpointing=True)):
        module = build(given, images)
        module.objective.on_epoch(0, 2)
        few = images.train.take(torch.arange(8))
        with seeding.isolated_rng(3):
            module.objective.backward(module.model, module.views_of(few.pixels, few.rows), module.attack)
        recomputed = [type(block).__mro__[1].__name__ == "_Recomputed" for block in blocks(module.model.backbone)]
        assert recomputed == [given.machine.grad_checkpointing] * len(recomputed)
        found.append([*(p.grad for p in module.parameters()), *module.buffers()])
    assert_same(found[1], found[0])


@pytest.mark.e2e
def test_a_run_may_change_to_it_and_back(tmp_path):
    config = preset("digits", **TINY | {"epochs": 2})
    whole = pretrain(config, tmp_path / "whole")
    with pytest.raises(TrainingStopped):
        pretrain(config.replace(grad_checkpointing=True), tmp_path / "run", max_steps=1)
    run = pretrain(config, tmp_path / "run")
    assert_same(*([*load_encoder(each.path).state_dict().values()] for each in (run, whole)))
    for each, option in ((whole, False), (run, True)):
        options = {"probe_protocol": "aff_pgd", "probe_epochs": 1, "grad_checkpointing": option}
        probe(each, each.read_config().replace(**options))
    assert_same(*([*load_classifier(each.path).state_dict().values()] for each in (run, whole)))


@pytest.mark.parametrize(
    "given", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Identity()]
)
def test_a_network_without_blocks_is_refused(given):
    with pytest.raises(UsageError, match="no blocks") as error:
        recompute_blocks(given)
    assert error.value.parameter == "grad_checkpointing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--backbone", "vgg11", "--backbone-kwargs", '{"mlp_ratio": 0.01}'],
            "--grad-checkpointing: the network has no blocks",
        ),
        (["--compile"], "not used with --compile"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(options, message, tmp_path, capsys):
    given = ["--data", "digits", "--grad-checkpointing", "--out", str(tmp_path / "run"), *options]
    assert main(["pretrain", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_blocks_are_pickled_and_a_module_is_unwrapped_with_its_own_classes():
    torch.manual_seed(0)
    encoder = wrap_encoder(timm.create_model("resnet10t", num_classes=0), (3, 16, 16))
    kinds = [type(block) for block in blocks(encoder.backbone)]
    recompute_blocks(encoder.backbone)
    again = pickle.loads(pickle.dumps(encoder)).eval()
    assert [type(block) for block in blocks(again.backbone)] == [type(block) for block in blocks(encoder.backbone)]
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again.features(x), encoder.eval().features(x))
    unwrapped = encoder.unwrap()
    assert [type(block) for block in blocks(unwrapped)] == kinds
    assert pickle.loads(pickle.dumps(unwrapped)).state_dict().keys() == unwrapped.state_dict().keys()
    assert isinstance(blocks(encoder.backbone)[0], _Recomputed)
