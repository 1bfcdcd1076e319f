import functools

import pytest
import torch
from torch import nn

from acl_plugin import available
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.runs.models import read_model
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import autocast, compile_encoder, precision, training_device
from acl_plugin.runtime.files import read_json
from acl_plugin.training import module
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain
from conftest import TINY, require_compiler

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")],
)
def test_bfloat16_where_the_cpu_multiplies_in_it(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision("auto", CPU) == expected
    assert precision(preset("digits").machine.precision, CPU) == "32-true"
    assert precision("64-true", CPU) == "64-true"


@pytest.mark.parametrize("quick", [True, False])
def test_bfloat16_where_the_gpu_multiplies_in_it(quick, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: quick)
    assert precision("auto", torch.device("cuda")) == ("bf16-mixed" if quick else "32-true")


def test_the_device_is_lightnings(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device(preset("digits").machine.accelerator).type == "cuda"
    assert training_device(preset("digits", accelerator="cpu").machine.accelerator).type == "cpu"


def test_weights_that_move_within_a_step_are_seen_in_bfloat16():
    layer, x = torch.nn.Linear(4, 1), torch.ones(2, 4)
    with autocast("bf16-mixed", CPU):
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1)
        assert (layer(x) - before).mean().item() == pytest.approx(4, abs=0.1)


@pytest.mark.e2e
def test_what_was_decided_is_recorded(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    run = pretrain(tiny_config.replace(precision="auto", epochs=1), tmp_path / "run")
    assert read_json(run.pretraining_file)["precision"] == "bf16-mixed"
    assert run.read_config().machine.precision == "auto"
    assert all(w.isfinite().all() for w in read_model(run.encoder_file)[1].values())


def compile_or_skip(encoder):
    require_compiler()
    assert compile_encoder(encoder, CPU)


@pytest.mark.e2e
def test_a_compiled_encoder_has_the_same_keys_and_values(encoder):
    """All graphs are traced; C++ is made of the projector alone, as that of the backbone takes a minute."""
    encoder.backbone.compile = functools.partial(encoder.backbone.compile, backend="aot_eager")
    x = torch.rand(6, 1, 8, 8)
    encoder.eval()
    keys, before = list(encoder.state_dict()), {norm_bank: encoder(x, norm_bank) for norm_bank in encoder.norm_banks}
    compile_or_skip(encoder)
    assert list(encoder.state_dict()) == keys
    for norm_bank, expected in before.items():
        torch.testing.assert_close(encoder(x, norm_bank), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def backend(request, monkeypatch):
    """Compile by this backend, which traces unless the test has another; C++ would take minutes."""
    chosen = getattr(request, "param", "aot_eager")
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=chosen))
    return chosen


ADD_ONS = {
    "gsa_rsl, all sharpened": {"sharpen": "all"},
    "gsa_rsl on acl_ds": {"base": "acl_ds"},
    "gsa_rsl on acl_ds, all sharpened": {"base": "acl_ds", "sharpen": "all"},
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", [*available(), *ADD_ONS])
@pytest.mark.usefixtures("backend", "same_noise")
def test_every_objective_has_the_same_gradient_compiled(name, options_of):
    own = {"objective": "gsa_rsl", "objective_kwargs": ADD_ONS[name]} if name in ADD_ONS else options_of(name)
    config, found = preset("digits", **TINY | own | {"precision": "64-true"}), []
    images = datasets.load(config.data)
    few = images.train.take(torch.arange(8))
    for compiled in (False, True):
        built = build(config, images).double()
        if compiled:
            compile_or_skip(built.model)
        built.objective.on_epoch(0, 2)
        with seeding.isolated_rng(3):
            built.objective.backward(built.model, built.views_of(few.pixels, few.rows), built.attack)
        found.append([*(p.grad for p in built.parameters()), *built.buffers()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)


class Sizes(set):
    """Backend that keeps the sizes of all inputs, among them numbers."""

    def __call__(self, graph, inputs):
        for each in inputs:
            self.update(each.shape if isinstance(each, torch.Tensor) else [each])
        return graph


@pytest.mark.e2e
@pytest.mark.parametrize("backend", [Sizes()], ids=["sizes"], indirect=True)
def test_each_batch_size_is_compiled_by_itself(encoder, backend):
    compile_or_skip(encoder)
    for size in (4, 6, 9):
        encoder(torch.rand(size, 1, 8, 8), "clean")
    assert {4, 6, 9} <= backend
    assert {type(size) for size in backend} == {int}


@pytest.mark.e2e
@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.usefixtures("backend")
def test_a_compiled_run_selects_a_coreset(fidelity, tiny_config, tmp_path):
    options = {"coreset": "rcs", "coreset_fidelity": fidelity, "coreset_warmup": 0.5, "coreset_every": 1}
    options |= {"epochs": 2, "compile": True}
    assert pretrain(tiny_config.replace(**options), tmp_path / "run").encoder_file.is_file()


@pytest.mark.e2e
def test_without_a_compiler_one_line_states_so_and_training_resumes(tiny_config, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", broken)
    run = pretrain(tiny_config.replace(compile=True, epochs=1), tmp_path / "run")
    assert run.encoder_file.is_file()
    told = [line for line in capsys.readouterr().err.splitlines() if "--compile" in line]
    assert told == ["--compile: no compiler works here (no C++ compiler); going on without it"]


@pytest.mark.e2e
def test_nothing_is_compiled_by_default(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "compile_encoder", lambda *_: pytest.fail("compiled"))
    pretrain(tiny_config.replace(epochs=1), tmp_path / "run")
