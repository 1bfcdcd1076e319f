import pytest
import torch
from torch import nn

from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from conftest import spec, trained_encoder

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("name", ["clean", "adv"])
@pytest.mark.parametrize("training", [False, True])
def test_export_equals_the_routed_forward_bit_for_bit(encoder, name, training):
    encoder.train(training)
    x = encoder.preprocess(torch.rand(4, 1, 8, 8))
    plain = norm_banks.export(encoder.backbone, name)
    with norm_banks.active(encoder.backbone, name):
        assert torch.equal(plain(x), encoder.backbone(x))
    assert not any(isinstance(m, norm_banks.RoutedNorm) for m in plain.modules())


def test_export_has_the_networks_original_keys(encoder):
    original = Encoder(spec(), ("only",)).backbone.state_dict()
    assert norm_banks.export(encoder.backbone, "adv").state_dict().keys() == original.keys()


def test_each_bank_has_its_own_statistics_and_a_forward_touches_one(encoder):
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder(torch.rand(4, 1, 8, 8), "adv")
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(".banks.adv." in k for k in changed)


def test_norm_bank_is_restored_after_an_exception_and_unknown_banks_are_refused(encoder):
    layers = [m for m in encoder.backbone.modules() if isinstance(m, norm_banks.RoutedNorm)]
    with pytest.raises(KeyError), norm_banks.active(encoder.backbone, "adv"):
        raise KeyError
    assert {layer.current.name for layer in layers} == {"clean"}
    with pytest.raises(UsageError, match="unknown norm bank 'advs'; the nearest: adv"):
        encoder(torch.rand(2, 1, 8, 8), "advs")


def test_a_network_without_batch_norm_has_one_bank_for_all_routes():
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    routed = norm_banks.add_banks(network, ("clean", "adv"))
    assert routed is network
    assert norm_banks.names_of(routed) == []
    with norm_banks.active(routed, "adv"):
        routed(torch.rand(2, 3))


def test_frozen_statistics_normalize_by_the_batch_and_change_no_buffer(encoder):
    x = torch.rand(4, 1, 8, 8)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with norm_banks.frozen_statistics(encoder):
        frozen = encoder(x)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert torch.equal(frozen, encoder(x))


def test_inference_restores_modes_and_flags(encoder):
    encoder.backbone.bn1.eval()
    next(encoder.parameters()).requires_grad_(False)
    modes = [m.training for m in encoder.modules()]
    flags = [p.requires_grad for p in encoder.parameters()]
    with pytest.raises(KeyError), norm_banks.inference(encoder):
        assert not any(m.training for m in encoder.modules())
        assert not any(p.requires_grad for p in encoder.parameters())
        raise KeyError
    assert modes == [m.training for m in encoder.modules()]
    assert flags == [p.requires_grad for p in encoder.parameters()]


@pytest.mark.e2e
def test_banks_are_loaded_and_exported_to_the_bit(encoder):
    states = {name: norm_banks.export(encoder.backbone, name).state_dict() for name in ("clean", "adv")}
    twin = trained_encoder()
    for p in twin.parameters():
        p.data.normal_()
    norm_banks.load_banks(twin.backbone, states)
    for name, state in states.items():
        loaded = norm_banks.export(twin.backbone, name).state_dict()
        assert all(torch.equal(v, state[k]) for k, v in loaded.items())


def test_a_network_with_one_bank_takes_the_last_state_and_faults_are_raised(encoder):
    state = norm_banks.export(encoder.backbone, "adv").state_dict()
    plain = norm_banks.export(encoder.backbone, "clean")
    norm_banks.load_banks(plain, {"adv": state})
    assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        norm_banks.load_banks(encoder.backbone, {"clean": state})


@pytest.mark.e2e
@pytest.mark.parametrize("projector", ["three_layer", "bottleneck", "identity"])
@pytest.mark.parametrize("names", [("shared",), ("clean", "adv")])
@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_banks_that_an_encoder_was_not_given_are_refused(projector, names, backbone):
    kwargs = None if backbone == "resnet10t" else {"depth": 1}
    model, x = Encoder(spec((1, 8, 8), backbone, kwargs), names, projector).eval(), torch.rand(2, 1, 8, 8)
    state = model.backbone.state_dict()
    for norm_bank in names:
        z = model(x, norm_bank)
        assert z.shape == model.project(model.features(x, norm_bank), norm_bank).shape
    for use in (
        lambda: model(x, "no such norm bank"),
        lambda: model(x, ""),
        lambda: model.features(x, "no such norm bank"),
        lambda: model.project(torch.rand(2, model.size), "no such norm bank"),
        lambda: model.views(x, x, "no such norm bank"),
        lambda: norm_banks.export(model.backbone, "no such norm bank"),
        lambda: norm_banks.export(model.projector, "no such norm bank"),
        lambda: norm_banks.load_banks(model.backbone, {"no such norm bank": state}),
    ):
        with pytest.raises(UsageError) as error:
            use()
        assert (error.value.parameter, error.value.allowed) == ("norm_bank", tuple(sorted(names)))
    plain = norm_banks.export(model.backbone, names[0])  # which takes any, as a classifier's backbone does
    with norm_banks.active(plain, "any"):
        plain(model.preprocess(x))


@pytest.mark.parametrize("names", [("train", "adv"), ("keys",), ("a", "a"), (), "ab", ("a.b",), ("",), (1,)])
def test_names_that_no_norm_bank_can_have_are_refused(names):
    with pytest.raises(UsageError) as error:
        norm_banks.add_banks(torch.nn.BatchNorm2d(3), names)
    assert error.value.parameter == "norm_banks"


def test_a_network_with_norm_banks_gets_no_others():
    network = norm_banks.add_banks(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), ("clean", "adv"))
    with pytest.raises(UsageError, match=r"`network` has norm banks \(clean, adv\)"):
        norm_banks.add_banks(network, ("a", "b"))
