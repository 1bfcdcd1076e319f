import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.evaluation import autoattack, run_folder
from acl_plugin.evaluation.autoattack import chunk_verdicts
from acl_plugin.evaluation.storage import FolderStates
from acl_plugin.evaluation.target import Target
from acl_plugin.evaluation.verdicts import STANDARD, Verdict
from acl_plugin.models.encoder import Classifier
from acl_plugin.registry import DATASETS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import write_model
from acl_plugin.runtime.files import read_json
from conftest import TINY, shorten, spec

CPU = torch.device("cpu")
EPS = 0.1
THREAT = ThreatModel("Linf", EPS)


class Nearest(nn.Module):
    """A linear classifier that is right on the digits more often than not."""

    def __init__(self, classes=10):
        super().__init__()
        train = datasets.load(preset("digits").data).train
        x, y = train.floats().flatten(1), train.labels % classes
        self.means = nn.Parameter(torch.stack([x[y == c].mean(0) for c in range(classes)]))

    def forward(self, x):
        return 2 * x.flatten(1) @ self.means.T - (self.means**2).sum(1)


def attacked(model, images, where, threat, seed):
    """Verdicts and warnings of a chunk."""
    part = images.take(torch.arange(len(images))[where])
    *_, last = autoattack.autoattack(Target(model, part, part.labels, threat, len(part), seed))
    return chunk_verdicts(last.chunk, part.labels, part.rows), set(last.chunk.flags)


@pytest.fixture
def images():
    return datasets.load(preset("digits", limit_test=40).data).test


@pytest.fixture
def run(tmp_path):
    return with_classifier(tmp_path / "run")


def with_classifier(path):
    torch.manual_seed(0)
    folder = RunDir(path)
    folder.start(preset("digits", **TINY))
    model = Classifier(spec(classes="0123456789"))
    nn.init.normal_(model.head.weight, std=3.0)
    write_model(folder.classifier_file, model.spec, model.state_dict())
    return folder


@pytest.mark.e2e
def test_verdicts_agree_with_the_reference_package_on_a_linear_model(images, monkeypatch):
    """A linear model's exact Linf robustness is known: margin > eps ||w_y - w_c||_1 for each c (off the box).

    AutoAttack is as it is but for Square, which finds nothing that the attacks by gradients do not find here.
    """
    whole = AutoAttack._set_version

    def with_fewer_queries(self, version="standard"):
        whole(self, version)
        self.square.n_queries = 500

    monkeypatch.setattr(AutoAttack, "_set_version", with_fewer_queries)
    model = Nearest().eval()
    verdicts, flags = attacked(model, images, slice(0, 40), THREAT, seed=0)
    x, y = images.floats(), images.labels
    logits, w = model(x), 2 * model.means
    margins = logits.gather(1, y[:, None]) - logits
    # in the box, a pixel moves only where it can: the exact worst case for each other class
    up, down = (x + EPS).clamp(max=1) - x, x - (x - EPS).clamp(min=0)
    direction = (w[None] - w[y][:, None]).view(len(x), 10, 1, 8, 8)
    gain = (direction.clamp(min=0) * up[:, None] + (-direction).clamp(min=0) * down[:, None]).flatten(2).sum(2)
    other = torch.ones(len(x), 10).scatter(1, y[:, None], 0).bool()
    exact = ((margins - gain) > 0).logical_or(~other).all(1)
    robust = torch.tensor([v.clean and v.broken_by is None for v in verdicts])
    assert robust.sum() > 5
    assert (~robust).sum() > 5
    assert torch.equal(robust, exact)
    assert flags == set()


@pytest.mark.e2e
def test_verdicts_carry_rows_labels_and_predictions(images, few):
    model = Nearest().eval()
    verdicts, _ = attacked(model, images, slice(10, 30), THREAT, seed=0)
    assert [v.index for v in verdicts] == images.rows[10:30].tolist()
    assert [v.label for v in verdicts] == images.labels[10:30].tolist()
    assert [v.clean_prediction for v in verdicts] == model(images.floats(10, 30)).argmax(1).tolist()
    assert all(v.broken_by is None for v in verdicts if not v.clean)
    assert any(v.broken_by for v in verdicts)
    for v in verdicts:
        assert (v.adversarial_prediction is None) == (v.broken_by is None)
        assert v.adversarial_prediction != v.label


def test_one_image_and_images_that_are_all_wrong(images, few):
    assert len(attacked(Nearest().eval(), images, slice(3, 4), THREAT, seed=0)[0]) == 1
    wrong = dataclasses.replace(images, labels=(images.labels + 1) % 10)
    model = Nearest().eval()
    right = (model(images.floats()).argmax(1) == wrong.labels).sum()
    steps = list(autoattack.autoattack(Target(model, wrong, wrong.labels, THREAT, 40)))
    assert [step.attack for step in steps] == list(STANDARD)
    assert sum(v.clean for v in chunk_verdicts(steps[-1].chunk, wrong.labels, wrong.rows)) == right


@pytest.mark.e2e
def test_global_randomness_is_left_alone_and_does_not_matter(images, few):
    model, results = Nearest().eval(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(attacked(model, images, slice(0, 40), ThreatModel("Linf", 0.1), seed=0))
        assert torch.equal(state, torch.get_rng_state())
    assert results[0] == results[1]


@pytest.mark.e2e
def test_few_classes_have_fewer_targets_and_three_no_apgd_t(images, few):
    for classes in (5, 3, 2):
        labels = images.labels % classes
        verdicts, _ = attacked(
            Nearest(classes).eval(), dataclasses.replace(images, labels=labels), slice(0, 40), THREAT, seed=0
        )
        assert len(verdicts) == 40
        if classes < 4:
            assert not any(v.broken_by == "apgd-t" for v in verdicts)


@pytest.mark.e2e
def test_modes_and_flags_are_as_before_at_each_state(images, few):
    model = Nearest()
    before = torch.get_rng_state()
    for step in autoattack.autoattack(Target(model, images.floats(), images.labels, THREAT, 40)):
        assert model.training, step.attack
        assert model.means.requires_grad
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.e2e
def test_autoattacks_warnings_are_kept(images, few):
    model = nn.Sequential(Nearest(), nn.Softmax(1)).eval()
    _, flags = attacked(model, images, slice(0, 5), THREAT, 0)
    assert any("probability distribution" in flag for flag in flags)


@pytest.mark.parametrize("how", ["far", "outside", "nan"])
def test_an_attack_that_leaves_the_threat_model_stops_the_evaluation(images, monkeypatch, how):
    change = {"far": lambda x: (x + 0.2).clamp(0, 1), "outside": lambda x: x - 0.01, "nan": lambda x: x * float("nan")}
    monkeypatch.setattr(autoattack, "run_attack", lambda model, name, x, *_, **__: change[how](x))
    with pytest.raises(RuntimeError, match="apgd-ce left the threat model"):
        attacked(Nearest().eval(), images, slice(0, 5), THREAT, 0)


def forget(run):
    """As the message about another evaluation says."""
    for file in (run.evaluation_key_file, run.evaluation_file):
        file.unlink()


@pytest.mark.e2e
def test_evaluation_writes_lines_and_their_sum(run, few):
    config = preset("digits", **TINY, eval_batch_size=5)
    result = run_folder.evaluate(run, config, CPU)
    lines = [json.loads(line) for line in run.verdicts_file.read_text().splitlines()]
    images = datasets.load(config.data).test
    assert [line["index"] for line in lines] == images.rows.tolist()
    assert all(list(line) == [field.name for field in dataclasses.fields(Verdict)] for line in lines)
    assert {line["broken_by"] for line in lines} <= {None, *STANDARD}
    clean = sum(line["label"] == line["clean_prediction"] for line in lines) / 12
    robust = sum(line["label"] == line["clean_prediction"] and line["broken_by"] is None for line in lines) / 12
    assert json.loads(run.evaluation_file.read_text()) == result
    expected = {"dataset": "digits", "threat_model": "Linf", "eps": 0.1, "n": 12, "seed": 0, "version": "standard"}
    assert expected.items() <= result.items()
    assert (result["clean_accuracy"], result["robust_accuracy"]) == (clean, robust)
    assert list(result["cumulative_accuracy"]) == list(STANDARD)


@pytest.mark.e2e
@pytest.mark.parametrize("at", [0, 3, 11])  # of four attacks on each of three chunks
def test_an_evaluation_that_stops_anywhere_ends_with_the_same_verdicts(run, few, monkeypatch, at):
    config = preset("digits", **TINY, eval_batch_size=5)  # three chunks, the last one smaller
    whole = run_folder.evaluate(run, config, CPU)
    lines = run.verdicts_file.read_bytes()
    kept = {p.name: p.read_bytes() for p in run.adversarial_folder.iterdir()}
    forget(run)
    original, calls = FolderStates.store, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(FolderStates, "store", stop)
    with pytest.raises(KeyboardInterrupt):
        run_folder.evaluate(run, config, CPU)
    assert not run.evaluation_file.exists()
    monkeypatch.setattr(FolderStates, "store", original)
    again = run_folder.evaluate(run, config, CPU)
    assert run.verdicts_file.read_bytes() == lines
    assert {p.name: p.read_bytes() for p in run.adversarial_folder.iterdir()} == kept
    same = set(whole) - {"seconds", "resumed"}
    assert {k: whole[k] for k in same} == {k: again[k] for k in same}
    assert again["resumed"]


@pytest.mark.e2e
def test_the_evaluation_of_something_else_is_refused(run, few):
    config = preset("digits", **TINY)
    result = run_folder.evaluate(run, config, CPU)
    assert run_folder.evaluate(run, config, CPU) == result
    for options in ({"eps": 0.2}, {"seed": 1}, {"limit_test": 5}, {"norm": "L2"}):
        with pytest.raises(UsageError, match=r"with different settings .*Pass `overwrite` to replace it"):
            run_folder.evaluate(run, config.replace(**options), CPU)
    assert run_folder.evaluate(run, config.replace(eval_batch_size=3), CPU) == result  # and says so
    other = config.replace(eps=0.2)
    replaced = run_folder.evaluate(run, other, CPU, overwrite=True)
    assert (replaced["eps"], replaced["resumed"]) == (0.2, False)
    assert run_folder.evaluate(run, other, CPU) == replaced


@pytest.mark.e2e
def test_an_evaluation_of_an_earlier_version_is_resumed(run, few):
    """Its chunks do not have the predictions on adversarial examples."""
    config = preset("digits", **TINY, eval_batch_size=5)
    result = run_folder.evaluate(run, config, CPU)
    lines = run.verdicts_file.read_text()
    run.evaluation_file.unlink()
    for chunk in run.chunks_folder.iterdir():
        values = json.loads(chunk.read_text())
        del values["adversarial"]
        chunk.write_text(json.dumps(values))
    again = run_folder.evaluate(run, config, CPU)
    assert again["robust_accuracy"] == result["robust_accuracy"]
    found = [json.loads(line) for line in run.verdicts_file.read_text().splitlines()]
    assert [line["broken_by"] for line in found] == [json.loads(line)["broken_by"] for line in lines.splitlines()]
    assert {line["adversarial_prediction"] for line in found} == {None}


@pytest.mark.e2e
def test_a_damaged_chunk_is_reported(run, few):
    config = preset("digits", **TINY)
    run_folder.evaluate(run, config, CPU)
    run.evaluation_file.unlink()
    run.evaluation_chunk(0).write_text('{"start": 3}\n')
    with pytest.raises(UsageError, match=r"evaluation_chunks/000000.json is damaged .* delete it, and repeat"):
        run_folder.evaluate(run, config, CPU)


@pytest.mark.e2e
def test_other_weights_or_images_are_another_evaluation(run, few):
    config = preset("digits", **TINY)
    run_folder.evaluate(run, config, CPU)
    torch.manual_seed(1)
    model = Classifier(spec(classes="0123456789"))
    write_model(run.classifier_file, model.spec, model.state_dict())
    with pytest.raises(UsageError, match="different settings .*weights_sha256"):
        run_folder.evaluate(run, config, CPU)


EVALUATED = preset("digits", **TINY | {"limit_test": 40}, eval_batch_size=6, eps=0.6)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that was evaluated as in ``EVALUATED``; to be copied."""
    run = with_classifier(tmp_path_factory.mktemp("evaluated") / "run")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        run_folder.evaluate(run, EVALUATED, CPU)
    return run.path


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["prediction", "verdict", "images", "far", "missing"])
def test_what_was_kept_is_counted_again(evaluated, tmp_path, few, how):
    config, run = EVALUATED, RunDir(shutil.copytree(evaluated, tmp_path / "run"))
    run.evaluation_file.unlink()
    lines = [json.loads(line) for line in run.verdicts_file.read_text().splitlines()]
    broken = next(i for i, line in enumerate(lines) if line["broken_by"])
    start = broken // 6 * 6
    chunk = json.loads(run.evaluation_chunk(start).read_text())
    file = run.adversarial_folder / f"{start:06}-{lines[broken]['broken_by']}.npz"
    with np.load(file) as content:
        positions, moved = content["positions"], content["images"]
    if how == "prediction":
        chunk["predictions"][broken - start] = (chunk["predictions"][broken - start] + 1) % 10
    elif how == "verdict":
        chunk["broken_by"][broken - start] = None
    elif how == "missing":
        file.unlink()
    else:
        images = datasets.load(config.data).test.floats().numpy()[positions]
        np.savez(file, positions=positions, images=images if how == "images" else np.clip(moved + 0.9, 0, 1))
    run.evaluation_chunk(start).write_text(json.dumps(chunk))
    messages = {
        "prediction": "clean predictions of images .* are not those recorded",
        "verdict": "is not what .*evaluation.jsonl says",
        "images": "do not break the model",
        "far": "left the threat model",
        "missing": "is missing or damaged",
    }
    with pytest.raises(RuntimeError, match=messages[how]):
        run_folder.evaluate(run, config, CPU)
    assert not run.evaluation_file.exists()


@pytest.mark.ddp
def test_two_processes_share_out_the_images_and_find_the_same(run):
    found = {}
    for devices in (1, 2):
        run_folder.evaluate(run, preset("digits", **TINY, eval_batch_size=5, devices=devices), CPU)
        found[devices] = (run.verdicts_file.read_bytes(), {p.name for p in run.adversarial_folder.iterdir()})
        assert read_json(run.evaluation_file)["n"] == 12
        forget(run)
    assert found[1] == found[2]


def test_the_chunks_of_several_processes_are_small_enough_for_all(run, few, monkeypatch):
    monkeypatch.setattr(run_folder, "share_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_folder.evaluate(run, preset("digits", **TINY, devices=5), CPU)
    assert read_json(run.evaluation_key_file)["batch_size"] == 3


def test_an_image_that_only_rounding_breaks_is_robust():
    class Fickle(nn.Module):
        """Wrong about the first image, but only in company."""

        def forward(self, x):
            wrong = torch.tensor([1.0, 0.0]).repeat(len(x), 1)
            if len(x) < 3:
                wrong[0] = torch.tensor([0.0, 1.0])
            return wrong

    y = torch.ones(4, dtype=torch.long)
    moved = torch.arange(4.0).view(4, 1, 1, 1)
    broken, kept, found = autoattack._fooled(Fickle(), moved, y, torch.arange(4))
    assert broken.tolist() == [0, 1, 2, 3]
    assert found.tolist() == [0, 0, 0, 0]
    broken, kept, found = autoattack._fooled(Fickle(), moved[:2], y, torch.tensor([1, 3]))
    assert broken.tolist() == []
    assert len(kept) == len(found) == 0


@pytest.mark.e2e
def test_three_classes_are_a_reduced_evaluation_that_cannot_be_exported(run, few, monkeypatch):
    from acl_plugin.leaderboard.export import export

    digits = DATASETS.get("digits")

    def of_three(config):
        source = digits(config)
        train, test = (dataclasses.replace(part, labels=part.labels % 3) for part in (source.train, source.test))
        return dataclasses.replace(source, train=train, test=test, classes=tuple("abc"))

    monkeypatch.setitem(DATASETS._factories, "digits", of_three)
    torch.manual_seed(0)
    model = Classifier(spec(classes="abc"))
    nn.init.normal_(model.head.weight, std=3.0)
    write_model(run.classifier_file, model.spec, model.state_dict())
    config = preset("digits", **TINY)
    result = run_folder.evaluate(run, config, CPU)
    assert result["version"] == "AA-reduced"
    assert result["cumulative_accuracy"]["apgd-t"] == result["cumulative_accuracy"]["apgd-ce"]
    with pytest.raises(UsageError, match="AA-reduced, as AutoAttack standard needs at least 4 classes; .* exported"):
        export(run)
    assert not run.robustbench_folder.exists()


@pytest.mark.e2e
def test_l2_and_fractions(run, few):
    result = run_folder.evaluate(run, preset("digits", **TINY, norm="L2", eps="1/2"), CPU)
    assert (result["threat_model"], result["eps"]) == ("L2", 0.5)


def test_no_images_are_reported(run, monkeypatch):
    config = preset("digits", **TINY)
    found = datasets.load(config.data)
    none = dataclasses.replace(found, test=found.test.take(torch.arange(0)))
    monkeypatch.setattr(datasets, "load", lambda _: none)
    with pytest.raises(UsageError, match="has no test images") as error:
        run_folder.evaluate(run, config, CPU)
    assert error.value.parameter == "data"


@pytest.mark.e2e
def test_the_batch_size_that_was_chosen_stays(run, few, monkeypatch):
    monkeypatch.setattr(run_folder, "largest_batch", lambda *_: 7)
    config = preset("digits", **TINY)
    assert run_folder.evaluate(run, config, CPU)["batch_size"] == 7
    run.evaluation_file.unlink()
    monkeypatch.setattr(run_folder, "largest_batch", lambda *_: 3)
    assert run_folder.evaluate(run, config, CPU)["batch_size"] == 7
