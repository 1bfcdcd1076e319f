import contextlib
import threading

import pytest
import torch
from torch import nn

import acl_plugin
from acl_plugin import pipeline
from acl_plugin.attacks.catalogue import attack_names
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.runtime.defaults import default_device, usual_defaults
from acl_plugin.training.pretrain import pretrain
from acl_plugin.validation import NORMS


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """Leave other tests the state of a process that has never had a default device: torch keeps that of a reset."""
    monkeypatch.setattr(torch, "_GLOBAL_DEVICE_CONTEXT", threading.local())


@contextlib.contextmanager
def of_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def of_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


# meta stands for an accelerator: it takes no tensor of the CPU, and no generator of it
STATES = {
    "float64": lambda: of_dtype(torch.float64),
    "bfloat16": lambda: of_dtype(torch.bfloat16),
    "default device": lambda: of_device("meta"),
    "device context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
every_state = pytest.mark.parametrize("state", STATES.values(), ids=STATES)


def found():
    """Return what decides how torch computes here."""
    new = torch.zeros(1)
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return new.dtype, new.device.type, *modes


@every_state
def test_usual_defaults_hold_inside_and_those_of_the_caller_after_also_after_an_error(state):
    usual = found()
    with state():
        before = found()
        assert before != usual
        with usual_defaults():
            assert found() == usual
        assert found() == before
        with pytest.raises(KeyError), usual_defaults():
            raise KeyError
        assert found() == before
    assert found() == usual


def test_usual_defaults_name_the_device_after_a_reset_which_torch_2_5_does_not():
    with of_device("meta"):
        pass
    with usual_defaults():
        assert torch.get_default_device() == torch.device("cpu")
        assert found()[1] == "cpu"
    with of_device("meta"):
        assert found()[1] == "meta"
    assert found()[1] == "cpu"


@pytest.mark.e2e
def test_an_encoder_is_trained_after_a_reset_of_the_default_device(tiny_config, tmp_path):
    expected = acl_plugin.load_encoder(pretrain(tiny_config, tmp_path / "usual").path)
    with of_device("meta"):
        pass
    encoder = acl_plugin.load_encoder(pretrain(tiny_config, tmp_path / "run").path)
    for name, values in expected.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], values), name


@pytest.mark.e2e
@every_state
def test_the_whole_job_has_the_same_result_in_every_state_of_the_process(state, tiny_config, tmp_path, few):
    expected = pipeline.run(tiny_config, tmp_path / "usual")
    images = acl_plugin.datasets.load(tiny_config.data).test.floats()
    logits = acl_plugin.load_classifier(tmp_path / "usual")(images)
    with state():
        result = pipeline.run(tiny_config, tmp_path / "run")
        classifier = acl_plugin.load_classifier(tmp_path / "run")
    differ = {key for key in expected if result[key] != expected[key]}
    assert differ <= {"seconds", "environment", "attacks"}, differ
    assert result["robust_accuracy"] == expected["robust_accuracy"]
    assert torch.equal(classifier(images), logits)


def own_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def untimed(suite):
    return {attack: row | {"seconds": None} for attack, row in suite.values["rows"].items()}


@pytest.mark.e2e
@every_state
def test_own_models_have_the_same_verdicts_in_every_state_of_the_process(state, few):
    threat = ThreatModel("Linf", 0.1)
    model, x, y = own_model(), torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    calls = {
        "evaluate": lambda: acl_plugin.evaluate(model, x, y, threat).verdicts,
        "suite": lambda: untimed(acl_plugin.evaluate_suite(model, x, y, threat, attacks=["FGSM", "PGD-20"])),
        "embedding": lambda: acl_plugin.evaluate_embedding(model, x, threat).moved(),
    }
    for name, call in calls.items():
        expected = call()
        with state():
            assert call() == expected, name


@every_state
def test_own_encoders_are_the_same_in_every_state_of_the_process(state):
    expected, x = acl_plugin.wrap_encoder(own_model(), (3, 8, 8)).eval(), torch.rand(2, 3, 8, 8)
    module = own_model()
    with state():
        encoder = acl_plugin.wrap_encoder(module, (3, 8, 8)).eval()
    assert torch.equal(encoder(x), expected(x))


@pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm in NORMS for name in attack_names(norm)])
def test_attacks_are_the_same_with_other_defaults(norm, name):
    model, x, y = own_model(), torch.rand(2, 3, 8, 8), torch.arange(2)
    attack = acl_plugin.InnerAttack(ThreatModel(norm, 0.1), name, 2)
    expected = attack.classifier(model, x, y, generator=torch.Generator().manual_seed(0))
    for state in (of_dtype(torch.float64), of_device("meta")):
        generator = torch.Generator().manual_seed(0)
        with state:
            assert torch.equal(attack.classifier(model, x, y, generator=generator), expected)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_model_has_the_default_device_of_its_user(error):
    class Model(nn.Module):
        def forward(self, x):
            self.where = torch.zeros(1).device.type
            if error:
                raise error
            return x

    model = Model()
    for device in ("meta", "cpu"):
        with torch.device("cpu"):
            with contextlib.suppress(*([error] if error else [])), default_device(model, torch.device(device)):
                model(torch.zeros(1))
            assert model.where == device
            assert torch.zeros(1).device.type == "cpu"
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
