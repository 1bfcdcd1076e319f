"""What users may rely on; a name is removed, or an argument renamed, in a release with a line in the changelog."""

import inspect

import pytest

import acl_plugin

FACE = {
    "Classifier": "spec",
    "Cost": "attacked forwards backwards repeated",
    "Encoder": "spec norm_banks projector",
    "EncoderProtocol": None,
    "Evaluation": "values verdicts",
    "EvaluationStopped": None,
    "InnerAttack": "threat name steps kwargs scale on_moved trusted",
    "Objective": "temperature",
    "RunConfig": None,
    "Terms": "total parts collapsed",
    "ThreatModel": "norm eps",
    "TrainingStopped": None,
    "TrainingUnfinished": "message done total",
    "UsageError": None,
    "Views": "a b images rows weak",
    "available": "",
    "create_objective": "name settings",
    "datasets": None,
    "evaluate": "model images labels threat seed batch_size device folder overwrite classes dataset",
    "evaluate_corruptions": "model images labels names source seed batch_size device folder overwrite classes dataset",
    "evaluate_embedding": "model images threat seed batch_size device folder overwrite dataset",
    "evaluate_suite": "model images labels threat attacks seed batch_size device folder overwrite classes dataset",
    "export_to_robustbench": "run name paper_url paper_title authors venue additional_data overwrite",
    "load_classifier": "run",
    "load_encoder": "run benign encoder",
    "losses": None,
    "preset": "data options",
    "pretrain": "config out encoder overwrite trainer_options",
    "probe": "run config device overwrite",
    "register": "name",
    "report": "runs out",
    "run": "config out device overwrite trainer_options",
    "wrap_encoder": "module shape features input_size input_range mean std projector norm_banks normalized",
}
"""Names, and the arguments of those that are called."""


def test_the_public_names():
    assert sorted(acl_plugin.__all__) == sorted(FACE)
    assert set(acl_plugin.__all__) <= set(dir(acl_plugin))
    with pytest.raises(AttributeError, match="module 'acl_plugin' has no attribute 'pretrian'"):
        _ = acl_plugin.pretrian


@pytest.mark.parametrize("name", sorted(FACE))
def test_the_arguments_and_a_docstring(name):
    found = getattr(acl_plugin, name)
    assert found.__doc__
    if FACE[name] is not None:
        assert " ".join(inspect.signature(found).parameters) == FACE[name]


def test_a_star_import_has_them_all():
    scope = {}
    exec("from acl_plugin import *", scope)
    assert {*FACE} <= scope.keys()
    assert (scope["pretrain"].__module__, scope["run"].__module__) == (
        "acl_plugin.training.pretrain",
        "acl_plugin.pipeline",
    )
