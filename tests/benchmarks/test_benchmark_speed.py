"""The plain step is the same mathematics, and the benchmark measures what it says. Nothing here is timed."""

import json
import math

import pytest
import torch

import benchmarks.__main__ as main
from acl_plugin.config import TWO_SIDED, preset, used
from acl_plugin.models.encoder import Encoder
from acl_plugin.training.build import build
from benchmarks import compact, speed
from conftest import TINY, spec

CPU = torch.device("cpu")
SMALL = {"backbone": "resnet10t", "backbone_kwargs": TINY["backbone_kwargs"], "batch_size": 6, "attack_steps": 3}


def modules(objective="acl_ds", **options):
    torch.manual_seed(0)
    options = SMALL | {"objective": objective, "attack_kwargs": {"random_start": False}} | options
    config = preset("cifar10", **used("cifar10", **options))
    ours = build(config, speed.random_data(12, 3, 16))
    for name in ours.objective.norm_banks:  # norm statistics that attacks can see
        for _ in range(4):
            ours.model(torch.rand(8, 3, 12, 12), name)
    return ours, speed.plain(ours)


@pytest.mark.e2e
@pytest.mark.parametrize("objective", ["acl_ds", "acl_a2s", "gsa_rsl", "acl_air", "rocl", "dynacl"])
def test_the_fast_step_is_the_plain_step(objective):
    # the steepest step within an adaptive radius of 1 multiplies what rounding leaves
    own = {"objective_kwargs": TWO_SIDED} if objective == "gsa_rsl" else {}
    ours, theirs = modules(objective, **own)
    views = ours.views_of(ours.data.train.pixels[:6], torch.arange(6))
    found = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        module.model.train()
        attack = module.attack if module is theirs else speed.replace(module.attack, on_moved=None)
        terms = module.objective.backward(module.model, views, attack)
        found.append((terms.total.item(), [p.grad for p in module.model.parameters()]))
    (loss, gradients), (plain_loss, plain_gradients) = found
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    scale = torch.stack([g.norm() for g in plain_gradients if g is not None]).norm().item()
    for one, other in zip(gradients, plain_gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm().item() < 1e-4 * scale


@pytest.mark.e2e
def test_the_plain_attack_takes_weight_gradients_and_leaves_what_was_there():
    _, theirs = modules()
    before = [torch.full_like(p, 2.0) for p in theirs.model.parameters()]
    for p, grad in zip(theirs.model.parameters(), before, strict=True):
        p.grad = grad
    seen = []
    theirs.model.projector[0].weight.register_hook(lambda g: seen.append(g))
    a, b = torch.rand(2, 4, 3, 12, 12)
    theirs.model.train()
    moved, _ = theirs.attack.pairwise(theirs.model, a, b, norm_bank="adv")
    assert len(seen) == 3
    assert theirs.model.training
    assert all(p.grad is g for p, g in zip(theirs.model.parameters(), before, strict=True))
    assert 0 < (moved - a).abs().max() <= 8 / 255 + 1e-6


def test_an_ordinary_model_has_layers_and_layout_of_torch():
    model = Encoder(spec((3, 32, 32), "resnet18", {}))
    assert speed.ordinary(model) is model
    assert {type(m) for m in model.modules() if isinstance(m, torch.nn.Conv2d)} == {torch.nn.Conv2d}
    assert all(p.is_contiguous() for p in model.parameters())


def test_pil_views_are_images_of_the_right_shape():
    pixels = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    drawn = speed.pil_views(pixels, ("a", "b"))
    for view in (drawn.a, drawn.b):
        assert view.shape == (5, 3, 12, 12)
        assert 0 <= view.min() < view.max() <= 1
    assert not torch.equal(drawn.a, drawn.b)
    torch.testing.assert_close(drawn.images, pixels / 255)


def test_operations_are_counted_passes_times_those_of_a_forward():
    ours, _ = modules("simclr")
    one = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)  # 12 x 12 x 4 outputs of 27 products each
    ours.model.backbone, ours.model.projector = torch.nn.Sequential(one, torch.nn.Flatten()), torch.nn.Identity()
    assert speed.flops(ours, CPU) == 2 * 12 * 12 * 4 * 27 * 6 * 6  # F = 6, batch 6


@pytest.mark.e2e
def test_a_result_is_kept_and_becomes_a_row(results, monkeypatch, capsys):
    monkeypatch.setattr(speed, "ceiling", lambda *_: 1e12)
    kwargs = json.dumps(SMALL["backbone_kwargs"])
    command = ["speed", "--backbone", "resnet10t", "--backbone-kwargs", kwargs, "--side", "12", "--batch-size", "6"]
    assert main.main([*command, "--precision", "32-true", "--repeats", "2"]) == 0
    assert "ratio" in capsys.readouterr().out
    result = compact.read(results / "results" / "speed_cpu_acl_ds_resnet10t_6_float32.json")
    assert result["encoder_forwards_per_image"] == 32
    assert set(result["parts"]) == set(speed.PARTS)
    assert sum(result["parts"].values()) < 1.5 * result["seconds_per_step"]
    assert result["ratio_range"][0] <= result["ratio"] <= result["ratio_range"][1]
    assert all(math.isfinite(result[name]) for name in ("flops_per_second", "share_of_ceiling", "peak_memory"))
    assert result["environment"]["packages"]["torch"]
    assert "| acl_ds | resnet10t, 3x12x12 | 6 | float32 |" in (results / "RESULTS.md").read_text()
    assert "](speed.svg)" in (results / "RESULTS.md").read_text()
    figure = (results / "speed.svg").read_text()
    assert figure.rstrip().endswith("</svg>")
    assert "acl_ds, resnet10t, batch 6: plain" in figure  # matplotlib keeps a text beside its outline


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "acl_dss"], "unknown objective 'acl_dss'; the nearest: acl_ds"),
        (["--device", "cuda"], "--device cuda: there is no GPU here"),
        (["--precision", "16-mixed"], "unknown --precision '16-mixed'"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_mistakes(arguments, message, capsys):
    assert main.main(["speed", *arguments]) == 2
    assert message in capsys.readouterr().err
