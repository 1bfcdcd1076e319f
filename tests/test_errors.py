import ast
import pickle
import tomllib
from pathlib import Path

import pytest

from acl_plugin import errors
from acl_plugin.cli import doctor
from acl_plugin.errors import UsageError, as_flags, reason, unknown
from conftest import ROOT


def test_nearest_names_ignore_case():
    assert str(unknown("attack", "pgd", ["PGD", "FGSM"])) == "unknown attack 'pgd'; the nearest: PGD"


def test_all_names_when_none_is_near_and_some_of_many():
    assert str(unknown("norm", "xyz", ["Linf", "L2"])) == "unknown norm 'xyz'; allowed: L2, Linf"
    many = [f"name{i}" for i in range(30)]
    assert str(unknown("thing", "?", many)).endswith(", ... (30 in all)")
    assert str(unknown("thing", "?", [])) == "unknown thing '?'; allowed: none"


def test_a_mistake_has_fields():
    error = unknown("norm", "L7", ["Linf", "L2"])
    assert (error.parameter, error.given, error.allowed) == ("norm", "L7", ("L2", "Linf"))
    error = UsageError("`limit_test` 20: digits has 10", parameter="limit_test", given=20, allowed="1 to 10")
    again = pickle.loads(pickle.dumps(error))  # as a process hands it to another
    assert (str(again), again.parameter, again.given, again.allowed) == (str(error), "limit_test", 20, "1 to 10")


def test_parameters_become_flags_on_the_command_line():
    told = "`limit_test` 20: raise `objective_kwargs.temperature`, or see `load_model(NAME)` and `Views`"
    expected = "--limit-test 20: raise --objective-kwargs.temperature, or see `load_model(NAME)` and `Views`"
    assert as_flags(told) == expected


def test_the_reason_of_an_exception_without_text_is_its_line():
    with pytest.raises(AssertionError) as caught:
        raise AssertionError
    assert reason(caught.value).startswith("AssertionError: test_errors.py, line ")
    assert reason(caught.value).endswith(": raise AssertionError")
    assert reason(ValueError(" a\n b ")) == "ValueError: a b"
    assert reason(KeyError()) == "KeyError"


@pytest.mark.e2e
@pytest.mark.parametrize("path", sorted(Path(errors.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_every_mistake_that_is_raised_has_its_fields(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "UsageError":
            fields = {keyword.arg for keyword in node.keywords}
            assert {"parameter", "given"} <= fields, f"line {node.lineno}: {ast.unparse(node)[:80]}"


def test_an_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: True)  # an environment with pip
    error = errors.missing_extra("`data` hf:NAME", "hf", ImportError("No module named\n'datasets'"), "data")
    assert str(error) == "`data` hf:NAME: No module named 'datasets'; run: pip install 'acl-plugin[hf]'"
    error = errors.missing_extra("this", "robustbench", ImportError("not whole. Run: pip install it"), "model")
    assert str(error) == "this: not whole. Run: pip install it"


def test_extras_of_errors_and_doctor_are_those_of_the_package():
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    assert set(doctor.EXTRAS) == declared - {"test"}
    calls = [
        node
        for path in Path(errors.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "missing_extra"
    ]
    named = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    assert named == declared - {"test", "wandb", "mlflow"}  # loggers have the name of their extra
