import shutil

import pytest

from acl_plugin.cli.main import main
from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.evaluation.storage import FolderStates
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import read_json, write_json


@pytest.mark.e2e
def test_a_result_on_a_dataset_that_is_registered_elsewhere_is_read(finished_run, tmp_path, capsys):
    run, own = RunDir(finished_run), RunDir(tmp_path / "own")
    own.path.mkdir()
    values = read_json(run.evaluation_file) | {"dataset": "mine"}
    write_json(own.evaluation_file, values)
    assert read_record(own.evaluation_file) == values
    assert main(["status", str(own.path)]) == 0
    assert "AutoAttack" in capsys.readouterr().out
    for wrong in ("../mine", "", 3, "a b", "<b>"):
        write_json(own.evaluation_file, values | {"dataset": wrong})
        with pytest.raises(UsageError, match="dataset is .*, not one of"):
            read_record(own.evaluation_file)


@pytest.mark.e2e
@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_damaged_file_of_adversarial_images_is_named(content, finished_run, tmp_path):
    states = FolderStates(RunDir(shutil.copytree(finished_run, tmp_path / "run")))
    file = next(states.run.adversarial_folder.iterdir())
    file.write_bytes(content)
    start, name = file.stem.split("-", 1)
    with pytest.raises(EvaluationStopped, match=f"{file.name} is missing or damaged"):
        states.adversarial(int(start), name)
