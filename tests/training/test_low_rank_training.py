"""Pretraining by low-rank matrices beside weights that stay as they are."""

import pytest
import torch

from acl_plugin import load_encoder, pretrain
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.models.low_rank import LowRank
from acl_plugin.registry import OBJECTIVES, create_objective
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.build import build
from conftest import TINY

FINETUNING = [name for name in OBJECTIVES.names() if getattr(OBJECTIVES.get(name), "finetunes", False)]


def options(name, teacher_run, **more):
    kwargs = {} if name == "fare" else {"teacher": str(teacher_run)}
    start = {"init": teacher_run} if name == "fare" else {}
    return TINY | {"objective": name, "objective_kwargs": kwargs, "lora_rank": 1, **start, **more}


@pytest.mark.e2e
@pytest.mark.parametrize("name", FINETUNING)
def test_only_low_rank_matrices_are_added(name, teacher_run, tmp_path):
    before = load_encoder(teacher_run).backbone.state_dict()
    pretrain(preset("digits", **options(name, teacher_run, lr=0.1)), tmp_path / "run")
    after = load_encoder(tmp_path / "run").backbone.state_dict()
    assert before.keys() == after.keys()
    moved = 0
    for key, value in after.items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        difference = (value - before[key]).double()
        if value.ndim < 2:
            assert not difference.any(), key
            continue
        rows = value.shape[0] * (value.shape[2] if value.ndim > 2 else 1)
        largest = torch.linalg.svdvals(difference.reshape(rows, -1))
        assert (largest[(value.shape[2] if value.ndim > 2 else 1) :] < 1e-5 * largest[0] + 1e-12).all(), key
        moved += bool(difference.any())
    assert moved > 5


@pytest.mark.e2e
def test_an_interrupted_training_resumes_to_the_bit(teacher_run, tmp_path, monkeypatch):
    config = preset("digits", **options("fare", teacher_run, lr=0.1, ema_decay=0.5))
    pretrain(config, tmp_path / "whole")
    step, calls = OBJECTIVES.get("fare").terms, []

    def stop(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(OBJECTIVES.get("fare"), "terms", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, tmp_path / "resumed")
    pretrain(config, tmp_path / "resumed")
    files = [RunDir(tmp_path / name).encoder_file.read_bytes() for name in ("whole", "resumed")]
    assert files[0] == files[1]


def test_what_is_trained(teacher_run):
    config = preset("digits", **options("deacl", teacher_run))
    module = build(config, datasets.load(config.data))
    (group,) = module.configure_optimizers().param_groups
    branch = [p for m in module.model.backbone.modules() if isinstance(m, LowRank) for p in m.parameters()]
    assert len(branch) > 10
    assert [id(p) for p in branch] == [id(p) for p in group["params"][: len(branch)]]
    assert all(not p.requires_grad for n, p in module.model.backbone.named_parameters() if n.endswith("original"))


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES.names()) - set(FINETUNING)))
def test_other_objectives_are_refused(name, tmp_path):
    config = preset("digits", **TINY | {"objective": name, "objective_kwargs": {}, "lora_rank": 2})
    try:
        create_objective(name)
    except UsageError:
        pytest.skip("needs an object of a file, which is asked for first")
    with pytest.raises(UsageError, match=f"'{name}', but with deacl, fare, profeat; leave one of them out") as error:
        build(config, datasets.load(config.data))
    assert error.value.parameter == "lora_rank"


def test_random_weights_are_refused(teacher_run):
    kwargs = {"teacher": str(teacher_run), "initialize": False}
    config = preset("digits", **options("deacl", teacher_run) | {"objective_kwargs": kwargs})
    with pytest.raises(UsageError, match="starts from trained weights; give `pretrained`, .* or a teacher that"):
        build(config, datasets.load(config.data))
