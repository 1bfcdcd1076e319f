import sys
import types

import pytest

from acl_plugin.cli.main import main
from acl_plugin.training import loggers
from acl_plugin.training.pretrain import pretrain
from conftest import OPTIONS


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_written(name, tmp_path, capsys, monkeypatch):
    def failing(*arguments, **options):
        raise ModuleNotFoundError(f"Please run `pip install {name}`.\nIt is missing.")

    monkeypatch.setattr(loggers, {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}[name], failing)
    assert main(["pretrain", "--out", str(tmp_path / "run"), *OPTIONS, f"--logger={name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"acl-plugin[{name}]" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_a_service_gets_options_and_metrics(tiny_config, tmp_path, monkeypatch):
    from lightning.pytorch.loggers import CSVLogger

    made = []

    class Service(CSVLogger):
        def __init__(self, name, save_dir, **options):
            super().__init__(save_dir, name="service")
            made.append((name, options))

    monkeypatch.setattr(loggers, "WandbLogger", Service)
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    run = pretrain(tiny_config.replace(logger="wandb"), tmp_path / "run")
    ((name, options),) = made
    assert name == "run"
    assert options["project"] == "acl_plugin"
    (metrics,) = (run.path / "service").rglob("metrics.csv")
    assert "loss" in metrics.read_text().splitlines()[0]
    assert "batch_size: 8" in next((run.path / "service").rglob("hparams.yaml")).read_text()
    assert run.metrics_file.is_file()
    pretrain(tiny_config, tmp_path / "run")  # the logger may change
