"""Learning rates against those that the authors' code set, step by step."""

import json

import lightning
import pytest

from acl_plugin.config import preset
from acl_plugin.config.sections import TrainingConfig
from acl_plugin.training.pretrain import pretrain
from acl_plugin.training.published_schedules import PUBLISHED
from acl_plugin.training.schedules import rates
from conftest import ROOT, TINY

GOLDEN = json.loads((ROOT / "tests" / "golden" / "schedules.json").read_text())
PER_EPOCH = GOLDEN["steps_per_epoch"]

pytestmark = pytest.mark.numeric


def test_every_published_schedule_has_values_of_its_code():
    assert GOLDEN["rates"].keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_rates_are_those_of_the_code(name):
    theirs = GOLDEN["rates"][name]
    c = TrainingConfig(schedule=name, epochs=GOLDEN["epochs"], warmup=GOLDEN["warmup"] / GOLDEN["epochs"])
    rate = rates(c, c.epochs)
    found = [rate(theirs["peak"], step / PER_EPOCH, 1 / PER_EPOCH) for step in GOLDEN["steps"]]
    assert found == pytest.approx(theirs["values"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("per_epoch", [1, 3, 7])
def test_rates_are_finite_and_within_the_peak_at_any_length(name, warmup, per_epoch):
    for epochs in (1, 2, 5):
        c = TrainingConfig(schedule=name, epochs=epochs, warmup=warmup)
        rate = rates(c, epochs)
        found = [rate(0.5, step / per_epoch, 1 / per_epoch) for step in range(epochs * per_epoch)]
        assert all(0 <= value <= 0.5 + 1e-9 for value in found)


@pytest.mark.e2e
def test_a_run_has_the_rates_of_its_schedule(tmp_path):
    config = preset("digits", **TINY | {"objective": "simclr", "epochs": 4}, schedule="dynacl", warmup=0.5, lr=1e-2)
    seen = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, *_, **__):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    pretrain(config, tmp_path / "run", callbacks=Rates())
    assert seen == pytest.approx([rate for rate in (5e-3, 1e-2, 1e-2, (1e-2 + 1e-6) / 2) for _ in range(2)])
