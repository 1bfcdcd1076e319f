import pytest

from acl_plugin import config
from acl_plugin.cli.parser import parser_of
from acl_plugin.errors import UsageError

OF_PYTHON = ("<class", "typing.", "Path", "NoneType")
"""What no message names: a reader of the command line knows no type of Python."""


@pytest.fixture(scope="module")
def parser():
    made = parser_of("run")
    for section in config.SECTIONS.values():
        made.add_class_arguments(section)
    return made


@pytest.mark.parametrize("given", ["[1, [2]]", "{a: {b: 1}}", "1.5", "true"])
def test_a_value_of_another_type_is_refused_without_types_of_python(given, parser):
    refused = {}
    for name in config.SECTION_OF:
        try:
            parser.parse([f"--{name.replace('_', '-')}={given}"])
        except UsageError as error:
            refused[name] = error
    assert {"epochs", "channels", "image_size", "compile"} <= refused.keys()
    for name, error in refused.items():
        assert (error.parameter, bool(error.allowed)) == (name, True)
        assert not any(word in str(error) for word in OF_PYTHON)


def test_a_path_of_another_type_is_refused_without_types_of_python(parser, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  data_dir: [1]\n")
    with pytest.raises(UsageError, match=r"^`data_dir`: allowed: a path, null. Got value: \[1\]$"):
        parser.parse(["--config", str(file)])
