"""Paths in a configuration become objects, with one-line errors, and files are read by nobody else."""

from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from acl_plugin import registry
from acl_plugin.config import preset, unused
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.objectives.branches import Teacher
from acl_plugin.objectives.pseudo_labels import PseudoLabels
from acl_plugin.objectives.simclr import SimCLR
from acl_plugin.training import build as building
from acl_plugin.training.build import build
from conftest import TINY


def built(name, **kwargs):
    config = preset("digits", **TINY | {"objective": name, "objective_kwargs": kwargs})
    return build(config, datasets.load(config.data))


def test_the_path_of_a_run_becomes_its_encoder(teacher_run):
    module = built("deacl", teacher=str(teacher_run))
    assert isinstance(module.objective.teacher, Teacher)
    assert not isinstance(module.objective.given, str)


def test_the_path_of_a_file_becomes_pseudo_labels(labels_file):
    objective = built("advcl", pseudo_labels=str(labels_file)).objective
    assert isinstance(objective.clusters.labels, PseudoLabels)
    assert objective.clusters.labels.sizes == [2, 5]


def test_paths_of_a_base_become_objects_too(teacher_run):
    settings = {"teacher": str(teacher_run), "beta": 3.0}
    objective = built("gsa_rsl", base="deacl", base_kwargs=settings).objective
    assert isinstance(objective.base.teacher, Teacher)
    assert objective.base.beta == 3.0
    assert settings["teacher"] == str(teacher_run)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("deacl", {}, "'deacl' needs a teacher: .*pretrain --objective simclr .*--objective-kwargs.teacher TEACHER"),
        ("profeat", {}, "'profeat' needs a teacher"),
        ("deacl", {"teacher": "nowhere"}, "nowhere: no such run folder"),
        ("advcl", {}, "needs pseudo-labels: .*acl-plugin pseudo-labels RUN --out FILE.*kwargs.pseudo_labels FILE"),
        ("a_infonce", {}, "needs pseudo-labels"),
        ("a_infonce", {"pseudo_labels": "nowhere.npz"}, "nowhere.npz: no such file"),
        ("advcl", {"pseudo_labels": "nowhere.npz"}, "nowhere.npz: no such file; make it with acl-plugin pseudo-labels"),
        ("advcl", {"pseudo_labels": "nowhere.npz", "cluster_weight": -1}, "cluster_weight -1"),
        ("a_infonce", {"base": "rocl", "pseudo_labels": "nowhere"}, "setting of a_infonce on rocl: 'pseudo_labels'"),
        ("gsa_rsl", {"base": "deacl"}, "base 'deacl': .*--objective-kwargs.base_kwargs.teacher TEACHER"),
        ("gsa_rsl", {"base": "deacl", "base_kwargs": {"teacher": "nowhere"}}, "nowhere: no such run folder"),
        ("deacl", {"teacher": 3}, "`teacher` of type int: allowed is an encoder"),
    ],
)
def test_what_an_objective_needs_and_does_not_get_is_reported_in_a_line(name, settings, message):
    with pytest.raises(UsageError, match=message) as error:
        built(name, **settings)
    assert "\n" not in str(error.value)


def test_an_objective_of_a_third_party_gets_objects_as_well(register, teacher_run):
    class Distilled(SimCLR):
        from_files: ClassVar = {"guide": "encoder"}

        def __init__(self, *, guide=None, motto=""):
            super().__init__()
            self.guide, self.motto = guide, motto

    register("distilled", Distilled)
    objective = built("distilled", guide=str(teacher_run), motto=str(teacher_run)).objective
    assert objective.guide.spec.backbone == "resnet10t"
    assert objective.motto == str(teacher_run)


def test_reading_the_options_reads_no_file(monkeypatch):
    for reader in ("load_encoder", "read_pseudo_labels"):
        monkeypatch.setattr(building, reader, None)
    for name, settings in (("deacl", {"teacher": "nowhere"}), ("advcl", {"pseudo_labels": "nowhere"})):
        options = preset("digits").replace(objective=name, objective_kwargs=settings).options()
        assert unused._example(options).attack_mode == "scalar"


@pytest.mark.parametrize(
    ("name", "values"), [("imagenet", (0.449, 0.226)), ("cifar", (0.4734, 0.2503)), ("none", (0, 1))]
)
def test_images_are_normalized_as_the_option_says(name, values):
    config = preset("digits", **TINY, input_normalization=name)
    spec = build(config, datasets.load(config.data)).model.spec
    assert (*spec.mean, *spec.std) == pytest.approx(values, abs=1e-3)  # of gray images: the means over the channels


def test_images_are_normalized_by_the_training_images_unless_an_option_says_otherwise():
    config = preset("digits", **TINY)
    data = datasets.load(config.data)
    spec = build(config, data).model.spec
    assert (spec.mean, spec.std) == (data.mean, data.std)


def test_a_broken_objective_of_another_package_is_not_among_those_to_use_instead(monkeypatch):
    entry = EntryPoint("broken", "no_such_package:Theirs", registry.OBJECTIVES.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    with pytest.raises(UsageError, match="`lora_rank` 2 is not used with objective 'simclr', but with .*fare") as error:
        config = preset("digits", **TINY | {"objective": "simclr", "lora_rank": 2})
        build(config, datasets.load(config.data))
    assert "broken" not in str(error.value)
