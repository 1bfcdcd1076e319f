import dataclasses
import json

import pytest
import torch
from torch import nn

from acl_plugin import data, evaluate
from acl_plugin.backbones import Classifier
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.evaluate import STANDARD, Verdict, attack_chunk, summary
from acl_plugin.inner_attack import ThreatModel
from acl_plugin.run_dir import RunDir, write_model
from conftest import TINY, spec

CPU = torch.device("cpu")
EPS = 0.1
THREAT = ThreatModel("Linf", EPS)


class Nearest(nn.Module):
    """A linear classifier that is right on the digits more often than not."""

    def __init__(self, classes=10):
        super().__init__()
        train = data.load(preset("digits")).train
        x, y = train.floats().flatten(1), train.labels % classes
        self.means = nn.Parameter(torch.stack([x[y == c].mean(0) for c in range(classes)]))

    def forward(self, x):
        return 2 * x.flatten(1) @ self.means.T - (self.means**2).sum(1)


@pytest.fixture
def images():
    return data.load(preset("digits", limit_test=40)).test


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    folder = RunDir(tmp_path / "run")
    folder.start(preset("digits", **TINY))
    model = Classifier(spec(classes="0123456789"))
    nn.init.normal_(model.head.weight, std=3.0)
    write_model(folder.classifier, model.spec, model.state_dict())
    return folder


def test_verdicts_agree_with_the_reference_package_on_a_linear_model(images):
    """A linear model's exact Linf robustness is known: margin > eps ||w_y - w_c||_1 for each c (off the box)."""
    model = Nearest().eval()
    verdicts, flags = attack_chunk(model, images, slice(0, 40), THREAT, seed=0)
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


def test_verdicts_carry_rows_labels_and_predictions(images, few):
    model = Nearest().eval()
    verdicts, _ = attack_chunk(model, images, slice(10, 30), THREAT, seed=0)
    assert [v.index for v in verdicts] == images.rows[10:30].tolist()
    assert [v.label for v in verdicts] == images.labels[10:30].tolist()
    assert [v.clean_prediction for v in verdicts] == model(images.floats(10, 30)).argmax(1).tolist()
    assert all(v.broken_by is None for v in verdicts if not v.clean)


def test_one_image_and_images_that_are_all_wrong(images, few):
    assert len(attack_chunk(Nearest().eval(), images, slice(3, 4), THREAT, seed=0)[0]) == 1
    wrong = dataclasses.replace(images, labels=(images.labels + 1) % 10)
    calls = []
    model = Nearest().eval()
    right = (model(images.floats()).argmax(1) == wrong.labels).sum()
    verdicts, _ = attack_chunk(model, wrong, slice(0, 40), THREAT, 0, on_attack=lambda: calls.append(1))
    assert sum(v.clean for v in verdicts) == right
    assert len(calls) == 4


def test_global_randomness_is_left_alone_and_does_not_matter(images, few):
    model, results = Nearest().eval(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(attack_chunk(model, images, slice(0, 40), ThreatModel("Linf", 0.1), seed=0))
        assert torch.equal(state, torch.get_rng_state())
    assert results[0] == results[1]


def test_few_classes_have_fewer_targets_and_three_no_apgd_t(images, few):
    for classes in (5, 3, 2):
        labels = images.labels % classes
        verdicts, _ = attack_chunk(
            Nearest(classes).eval(), dataclasses.replace(images, labels=labels), slice(0, 40), THREAT, seed=0
        )
        assert len(verdicts) == 40
        if classes < 4:
            assert not any(v.broken_by == "apgd-t" for v in verdicts)


def test_training_mode_and_images_out_of_range_are_refused(images):
    with pytest.raises(AssertionError, match="not in eval mode"):
        attack_chunk(Nearest(), images, slice(0, 2), THREAT, 0)
    bright = dataclasses.replace(images, levels=8)
    with pytest.raises(UsageError, match=r"images in \[0, 2\]: allowed is \[0, 1\]"):
        attack_chunk(Nearest().eval(), bright, slice(0, 2), THREAT, 0)


def test_softmax_outputs_are_flagged(images, few):
    model = nn.Sequential(Nearest(), nn.Softmax(1)).eval()
    _, flags = attack_chunk(model, images, slice(0, 5), THREAT, 0)
    assert any("probability distribution" in flag for flag in flags)


@pytest.mark.parametrize("how", ["far", "outside", "nan"])
def test_an_attack_that_leaves_the_threat_model_stops_the_evaluation(images, monkeypatch, how):
    change = {"far": lambda x: (x + 0.2).clamp(0, 1), "outside": lambda x: x - 0.01, "nan": lambda x: x * float("nan")}
    monkeypatch.setattr(evaluate, "_attack", lambda model, name, x, *rest: change[how](x))
    with pytest.raises(RuntimeError, match="apgd-ce left the threat model"):
        attack_chunk(Nearest().eval(), images, slice(0, 5), THREAT, 0)


def test_summary_is_the_count_of_the_verdicts():
    verdicts = [
        Verdict(0, 1, 1, None),
        Verdict(1, 1, 1, "apgd-ce"),
        Verdict(2, 1, 1, "fab-t"),
        Verdict(3, 1, 0, None),
    ]
    assert summary(verdicts) == {
        "clean_accuracy": 0.75,
        "robust_accuracy": 0.25,
        "cumulative_accuracy": {"apgd-ce": 0.5, "apgd-t": 0.5, "fab-t": 0.25, "square": 0.25},
    }


def test_evaluation_writes_lines_and_their_sum(run, few):
    config = preset("digits", **TINY, eval_batch_size=5)
    result = evaluate.evaluate(run, config, CPU)
    lines = [json.loads(line) for line in run.evaluation_lines.read_text().splitlines()]
    images = data.load(config).test
    assert [line["index"] for line in lines] == images.rows.tolist()
    assert all(set(line) == {"index", "label", "clean_prediction", "broken_by"} for line in lines)
    assert {line["broken_by"] for line in lines} <= {None, *STANDARD}
    clean = sum(line["label"] == line["clean_prediction"] for line in lines) / 12
    robust = sum(line["label"] == line["clean_prediction"] and line["broken_by"] is None for line in lines) / 12
    assert json.loads(run.evaluation.read_text()) == result
    expected = {"dataset": "digits", "threat_model": "Linf", "eps": 0.1, "n": 12, "seed": 0, "version": "standard"}
    assert expected.items() <= result.items()
    assert (result["clean_accuracy"], result["robust_accuracy"]) == (clean, robust)
    assert list(result["cumulative_accuracy"]) == list(STANDARD)


def test_a_stopped_evaluation_ends_with_the_same_verdicts(run, few, monkeypatch):
    config = preset("digits", **TINY, eval_batch_size=4)
    evaluate.evaluate(run, config, CPU)
    whole = run.evaluation_lines.read_bytes()
    for file in (run.evaluation, run.evaluation_lines):
        file.unlink()
    original, calls = evaluate._attack, []

    def stop_in_the_third_chunk(*arguments):
        calls.append(arguments)
        if len(run.evaluation_lines.read_text().splitlines() if run.evaluation_lines.exists() else []) == 8:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(evaluate, "_attack", stop_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(run, config, CPU)
    assert not run.evaluation.exists()
    monkeypatch.setattr(evaluate, "_attack", original)
    evaluate.evaluate(run, config, CPU)
    assert run.evaluation_lines.read_bytes() == whole


def test_the_evaluation_of_something_else_is_refused(run, few):
    config = preset("digits", **TINY)
    result = evaluate.evaluate(run, config, CPU)
    assert evaluate.evaluate(run, config, CPU) == result
    for options in ({"eps": 0.2}, {"seed": 1}, {"limit_test": 5}):
        with pytest.raises(UsageError, match=r"holds an evaluation of something else .*delete evaluation.jsonl"):
            evaluate.evaluate(run, dataclasses.replace(config, **options), CPU)


def test_damaged_lines_are_told(run, few):
    config = preset("digits", **TINY)
    evaluate.evaluate(run, config, CPU)
    run.evaluation.unlink()
    run.evaluation_lines.write_text('{"index": 3}\n')
    with pytest.raises(UsageError, match=r"evaluation.jsonl is damaged"):
        evaluate.evaluate(run, config, CPU)
