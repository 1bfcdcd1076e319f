import dataclasses

import pytest
import torch

from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.branches import Momentum, Pair, Teacher
from acl_plugin.runs.models import load_encoder
from conftest import spec

pytestmark = pytest.mark.numeric


def test_the_copy_follows_with_a_lag(encoder):
    copy = Momentum(encoder, 0.75)
    start = [p.clone() for p in encoder.parameters()]
    targets = []
    for _ in range(2):
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(1.0)
        targets.append([p.clone() for p in encoder.parameters()])
        copy.follow(encoder)
    for k, p0, p1, p2 in zip(copy.encoder.parameters(), start, *targets, strict=True):
        torch.testing.assert_close(k, 0.75 * (0.75 * p0 + 0.25 * p1) + 0.25 * p2)
    assert not any(p.requires_grad for p in copy.parameters())


def test_the_copys_norm_statistics_are_of_its_own_forwards(encoder):
    copy = Momentum(encoder, 0.9)
    before = {k: v.clone() for k, v in copy.encoder.named_buffers()}
    encoder(torch.rand(4, 1, 8, 8), "adv")
    copy.follow(encoder)
    assert all(torch.equal(v, before[k]) for k, v in copy.encoder.named_buffers())
    copy(torch.rand(4, 1, 8, 8), "adv")
    changed = {k for k, v in copy.encoder.named_buffers() if not torch.equal(v, before[k])}
    assert changed
    assert all(".adv." in k for k in changed)


def test_a_pair_sends_each_half_its_own_way(encoder):
    copy = Momentum(encoder, 0.9)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    pair = Pair(encoder, copy).eval()
    a, b = torch.rand(2, 3, 1, 8, 8)
    joint = pair(torch.cat([a, b]), "adv")
    assert torch.equal(joint, torch.cat(pair.views(a, b, "adv")))
    assert torch.equal(joint[:3], encoder(a, "adv"))
    assert torch.equal(joint[3:], copy(b, "adv"))


def test_a_teacher_stays_as_it_is(teacher_run):
    model = Encoder(spec())
    teacher = Teacher.of_student(load_encoder(teacher_run), model, "deacl").train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    f = teacher(torch.rand(4, 1, 8, 8).requires_grad_())
    assert not f.requires_grad
    assert not teacher.project(f).requires_grad
    assert not any(m.training for m in teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@pytest.mark.e2e
@pytest.mark.parametrize("norm_banks", [("shared",), ("clean", "adv")])
def test_a_student_starts_as_its_teacher(teacher_run, norm_banks):
    model = Encoder(spec(), norm_banks)
    teacher = Teacher.of_student(load_encoder(teacher_run), model, "profeat")
    teacher.copy_projector_to(model)
    model.eval()
    model.preprocess.load_state_dict(teacher.encoder.preprocess.state_dict())
    x = torch.rand(3, 1, 8, 8)
    for norm_bank in norm_banks:
        torch.testing.assert_close(model.features(x, norm_bank), teacher(x))
        torch.testing.assert_close(model(x, norm_bank), load_encoder(teacher_run)(x))


def test_a_student_that_normalizes_otherwise_is_named(capsys):
    teacher, model = Encoder(spec()), Encoder(dataclasses.replace(spec(), mean=(0.1,)))
    Teacher.of_student(teacher, model, "deacl")
    told = capsys.readouterr().err
    assert "the teacher normalizes images by mean (0.4,) and std (0.3,), the student by (0.1,) and (0.3,)" in told
    Teacher.of_student(teacher, Encoder(spec()), "deacl")
    assert not capsys.readouterr().err


def test_another_network_cannot_be_taught(teacher_run):
    model = Encoder(dataclasses.replace(spec(), kwargs={"stem_width": 8, "channels": [4, 8, 8, 8]}))
    with pytest.raises(UsageError, match=r"is another network: kwargs .*'stem_width': 4.*, here .*'stem_width': 8"):
        Teacher.of_student(load_encoder(teacher_run), model, "deacl")


def test_a_teacher_that_resizes_images_otherwise_is_another_function():
    teacher, student = (Encoder(dataclasses.replace(spec(), input_size=size)) for size in ((16, 16), None))
    with pytest.raises(UsageError, match=r"is another network: input_size \(16, 16\), here \(8, 8\)"):
        Teacher.of_student(teacher, student, "deacl")
    same = Encoder(dataclasses.replace(spec(), input_size=(8, 8)))  # as it is without one
    Teacher.of_student(same, student, "deacl")


def test_a_teacher_without_the_students_projector_is_reported(teacher_run):
    model = Encoder(spec(), projector="wide")
    with pytest.raises(UsageError, match="no projector of the student's kind; use a SimCLR run"):
        Teacher.of_student(load_encoder(teacher_run), model, "profeat").copy_projector_to(model)
