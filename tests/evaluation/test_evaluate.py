"""A model of one's own: plain torch modules, evaluated and left as they were."""

import copy
import json
import os
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import acl_plugin
from acl_plugin import Evaluation, ThreatModel, UsageError
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.evaluation import autoattack, run_folder
from acl_plugin.evaluation.case import prepared
from acl_plugin.evaluation.inputs import collect
from acl_plugin.evaluation.storage import FolderStates
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.memory_format import channels_last
from acl_plugin.reporting import tables
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, write_model
from conftest import TINY, spec

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture
def data():
    test = datasets.load(preset("digits", limit_test=20).data).test
    return test.floats(), test.labels


@pytest.fixture
def model():
    """A linear classifier by the means of the digits, in training mode, with a layer of each kind of state."""
    train = datasets.load(preset("digits").data).train
    x, y = train.floats().flatten(1), train.labels
    means = torch.stack([x[y == c].mean(0) for c in range(10)])
    network = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    with torch.no_grad():
        network[3].weight.copy_(2 * means)
        network[3].bias.copy_(-(means**2).sum(1))
    return network.train()


def state_of(model):
    """Everything of model and process that an evaluation leaves as it was."""
    return {
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": [id(buffer) for buffer in model.buffers()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def unchanged(model):
    """The model in a mixed state, which is compared at the end of the test."""
    model[2].eval()
    model[3].bias.requires_grad_(False)
    model[3].weight.grad = torch.ones(10, 64)
    before = state_of(model)
    yield model
    assert same(before, state_of(model))


@pytest.mark.e2e
def test_verdicts_and_accuracies_are_those_of_the_model(unchanged, data, few):
    x, y = data
    found = acl_plugin.evaluate(unchanged, x, y, THREAT)
    clean = nn.Sequential(*unchanged).eval()(x).argmax(1)
    unchanged.train()
    unchanged[2].eval()
    assert [v.index for v in found.verdicts] == list(range(20))
    assert [v.label for v in found.verdicts] == y.tolist()
    assert [v.clean_prediction for v in found.verdicts] == clean.tolist()
    assert found.clean_accuracy == (clean == y).double().mean().item()
    assert found.robust_accuracy == sum(v.robust for v in found.verdicts) / 20 < found.clean_accuracy
    assert (found.n, found.threat, found.values["version"]) == (20, THREAT, "standard")
    assert found.flags == tuple(found.values["flags"])
    assert found.seconds >= 0
    assert f"robust   {100 * found.robust_accuracy:6.2f} %" in str(found)
    assert str(found).startswith("AutoAttack standard, Linf eps 0.1, 20 images, seed 0")


class Rounded(nn.Module):
    """Rounds images, which hides the gradient unless it is passed straight through, and scales the logits."""

    def __init__(self, network, straight=False, scale=1.0):
        super().__init__()
        self.network, self.straight, self.scale = network, straight, scale

    def forward(self, x):
        rounded = (16 * x).round() / 16
        return self.scale * self.network(x + (rounded - x).detach() if self.straight else rounded + 0 * x)


@pytest.mark.e2e
@pytest.mark.parametrize("change", [{"straight": True}, {"scale": 7.0}])
@pytest.mark.parametrize("function", ["evaluate", "evaluate_suite", "evaluate_embedding"])
def test_a_folder_is_not_that_of_a_model_with_other_code(function, change, data, few, tmp_path):
    x, y = data
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    options = {"attacks": ["FGSM"]} if function == "evaluate_suite" else {}
    labels = () if function == "evaluate_embedding" else (y,)
    evaluate = getattr(acl_plugin, function)
    first = evaluate(Rounded(network), x, *labels, threat=THREAT, folder=tmp_path / "results", **options)
    again = evaluate(Rounded(network), x, *labels, threat=THREAT, folder=tmp_path / "results", **options)
    assert again.values["output_norm"] == first.values["output_norm"]
    with pytest.raises(UsageError, match=r"different settings \((output|gradient)_norm"):
        evaluate(Rounded(network, **change), x, *labels, threat=THREAT, folder=tmp_path / "results", **options)


@pytest.mark.unit
def test_the_clean_images_are_encoded_once_before_the_attacks(data, model):
    passed, options = [], {"seed": 0, "batch_size": 7, "device": None, "classes": None}
    model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    with prepared(model, *data, **options, dataset=None, folder=None, attacked=False) as case:
        before = sum(passed)
        case.computed(attacked=False)
    assert sum(passed) == before
    assert passed.count(7) == len(data[0]) // 7


@pytest.mark.e2e
@pytest.mark.parametrize("training", [False, True])
def test_the_attacks_call_a_classifier_with_its_norms_folded(data, model, few, monkeypatch, training):
    passes, fold = [], autoattack.folded

    def recorded(network, images):
        faster = fold(network, images)
        assert faster is not network
        faster.register_forward_hook(lambda *_: passes.append(len(passes)))
        return faster

    monkeypatch.setattr(autoattack, "folded", recorded)
    x, y = data
    acl_plugin.evaluate(model, x, y, THREAT)
    assert not passes  # a network of the user is called as it is
    torch.manual_seed(0)
    classifier = Classifier(spec(classes="0123456789")).train(training)
    nn.init.normal_(classifier.head.weight, std=3.0)
    before = state_of(classifier)
    predicted = classifier.eval()(x).argmax(1)  # as labels, so that there is an image to attack
    classifier.train(training)
    acl_plugin.evaluate(classifier, x, predicted, THREAT)
    assert same(before, state_of(classifier))
    assert passes


@pytest.mark.e2e
def test_the_result_is_that_of_the_run_folder(tmp_path, few):
    """The same network on the same images, in the same batches and layout."""
    torch.manual_seed(0)
    run, config = RunDir(tmp_path / "run"), preset("digits", **TINY, eval_batch_size=5)
    run.start(config)
    classifier = Classifier(spec(classes="0123456789"))
    nn.init.normal_(classifier.head.weight, std=3.0)
    write_model(run.classifier_file, classifier.spec, classifier.state_dict())
    theirs = run_folder.evaluate(run, config, torch.device("cpu"))
    test = datasets.load(config.data).test
    own = acl_plugin.evaluate(
        channels_last(load_classifier(run.path)),
        test.floats(),
        test.labels,
        ThreatModel(config.threat.norm, config.threat.eps),
        batch_size=5,
        classes=tuple("0123456789"),
        folder=tmp_path / "own",
    )
    names = ("clean_accuracy", "robust_accuracy", "cumulative_accuracy", "n", "version", "weights_sha256", "flags")
    assert {name: own.values[name] for name in names} == {name: theirs[name] for name in names}
    lines = [json.loads(line) for line in run.verdicts_file.read_text().splitlines()]
    assert [(v.clean_prediction, v.broken_by) for v in own.verdicts] == [
        (line["clean_prediction"], line["broken_by"]) for line in lines
    ]
    broken = 0
    for file in run.adversarial_folder.iterdir():
        with np.load(file) as one, np.load(tmp_path / "own" / "adversarial" / file.name) as other:
            assert np.array_equal(one["images"], other["images"])
            for position, image in zip(one["positions"].tolist(), one["images"], strict=True):
                broken += 1
                found = load_classifier(run.path)(torch.from_numpy(image)[None]).argmax().item()
                assert (
                    own.verdicts[position].adversarial_prediction == lines[position]["adversarial_prediction"] == found
                )
    assert broken == sum(v.adversarial_prediction is not None for v in own.verdicts)
    assert sum(map(sum, own.confusion())) == own.n
    assert sum(row.n * (row.robust or 0) for row in own.by_class()) == pytest.approx(own.n * own.robust_accuracy)


@pytest.mark.e2e
def test_tensors_datasets_and_loaders_give_the_same(unchanged, data, few):
    x, y = data
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    pairs = TensorDataset(x, y)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter((image, int(label)) for image, label in pairs)

    sources = [pairs, Stream(), DataLoader(pairs, batch_size=7)]
    whole = acl_plugin.evaluate(unchanged, x, y.tolist(), THREAT)
    for source in sources:
        assert acl_plugin.evaluate(unchanged, source, threat=THREAT).verdicts == whole.verdicts
    shuffled = DataLoader(pairs, batch_size=7, shuffle=True, generator=generator)
    first = acl_plugin.evaluate(unchanged, shuffled, threat=THREAT)
    assert torch.equal(generator.get_state(), state)
    assert acl_plugin.evaluate(unchanged, shuffled, threat=THREAT).verdicts == first.verdicts
    assert sorted(v.label for v in first.verdicts) == sorted(y.tolist())


@pytest.mark.e2e
def test_work_under_no_grad_and_inference_mode(unchanged, data, few):
    x, y = data
    outside = acl_plugin.evaluate(unchanged, x, y, THREAT)
    with torch.no_grad():
        assert acl_plugin.evaluate(unchanged, x, y, THREAT).verdicts == outside.verdicts
    with torch.inference_mode():
        assert acl_plugin.evaluate(unchanged, x.clone(), y.clone(), THREAT).verdicts == outside.verdicts
        assert acl_plugin.evaluate_suite(unchanged, x.clone(), y, THREAT, attacks=["FGSM"]).n == 20


def test_a_model_without_weights(data, few):
    class Rows(nn.Module):
        def forward(self, x):
            return x.mean(3).flatten(1)

    x, y = data
    assert acl_plugin.evaluate(Rows(), x[:4], y[:4] % 8, THREAT).n == 4


@pytest.mark.e2e
def test_save_writes_all_of_it(model, data, few, tmp_path):
    x, y = data
    found = acl_plugin.evaluate(model, x[:4], y[:4], THREAT, classes=list("abcdefghij"))
    found.save(tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    assert len(written["verdicts"]) == 4
    assert written["images"]["classes"] == list("abcdefghij")
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        found.save(tmp_path / "missing" / "result.json")


def test_few_classes_have_the_reduced_autoattack(data, few):
    x, y = data
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    found = acl_plugin.evaluate(network, x[:6], y[:6] % 3, THREAT)
    assert found.values["version"] == "AA-reduced"
    assert str(found).startswith("AA-reduced (AutoAttack without apgd-t)")
    assert all(v.broken_by != "apgd-t" for v in found.verdicts)
    assert "apgd-t " not in str(found)
    head = tables.accuracies([("mine", found.values | {"dataset": "digits"})])[1]
    assert head.split() == ["clean", "apgd-ce", "fab-t", "square", "AA-reduced"]


@pytest.mark.e2e
@pytest.mark.parametrize("at", [1, 4, 8])
def test_an_interrupted_call_resumes(unchanged, data, few, monkeypatch, tmp_path, at):
    x, y = data
    whole = acl_plugin.evaluate(unchanged, x, y, THREAT, batch_size=10)
    original, calls = FolderStates.store, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderStates, "store", stop)
        acl_plugin.evaluate(unchanged, x, y, THREAT, batch_size=10, folder=tmp_path / "kept")
    monkeypatch.setattr(FolderStates, "store", lambda *arguments: calls.append(arguments) or original(*arguments))
    again = acl_plugin.evaluate(unchanged, x, y, THREAT, folder=tmp_path / "kept")
    assert len(calls) == 9  # 8 attacks on chunks, one of them twice
    assert again.verdicts == whole.verdicts
    assert again.values["resumed"]
    finished = acl_plugin.evaluate(unchanged, x, y, THREAT, folder=tmp_path / "kept")
    assert len(calls) == 9
    assert (finished.values, finished.verdicts) == (again.values, again.verdicts)


@pytest.mark.e2e
def test_other_settings_are_refused_or_overwrite(model, data, few, tmp_path):
    x, y = data
    folder = tmp_path / "kept"
    acl_plugin.evaluate(model, x, y, THREAT, batch_size=10, folder=folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    others = {
        "seed 1, there 0": {"seed": 1},
        "eps 0.2, there 0.1": {"threat": ThreatModel("Linf", 0.2)},
        "threat_model L2": {"threat": ThreatModel("L2", 0.1)},
        "batch_size 5, there 10": {"batch_size": 5},
        "classes a": {"classes": list("abcdefghij")},
        "the order of the images": {"images": x.flip(0), "labels": y.flip(0)},
        "number of images 12": {"images": x[:12], "labels": y[:12]},
    }
    for difference, options in others.items():
        given = {"images": x, "labels": y, "threat": THREAT, "folder": folder} | options
        with pytest.raises(UsageError, match="different settings .*Pass `overwrite` to replace it") as error:
            acl_plugin.evaluate(model, **given)
        assert difference.split(" a")[0] in str(error.value)
        assert error.value.parameter == "overwrite"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    with torch.no_grad():
        model[3].bias[0] += 0.1
    with pytest.raises(UsageError, match="weights_sha256"):
        acl_plugin.evaluate(model, x, y, THREAT, folder=folder)
    replaced = acl_plugin.evaluate(model, x[:12], y[:12], THREAT, folder=folder, overwrite=True)
    assert (replaced.n, replaced.values["resumed"]) == (12, False)
    assert acl_plugin.evaluate(model, x[:12], y[:12], THREAT, folder=folder).verdicts == replaced.verdicts


@pytest.mark.e2e
def test_a_function_that_changed_without_its_weights_is_not_taken_for_the_same(model, data, few, tmp_path):
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.model, self.scale = model, scale

        def forward(self, x):
            return self.scale * self.model(x)

    x, y = data
    acl_plugin.evaluate(Scaled(1), x, y, THREAT, folder=tmp_path / "kept")
    with pytest.raises(UsageError, match="different settings .clean_accuracy .*Pass `overwrite`"):
        acl_plugin.evaluate(Scaled(-1), x, y, THREAT, folder=tmp_path / "kept")
    same = ("as they are", lambda name, severity: (x, y))
    calls = {
        "suite": lambda model, folder: acl_plugin.evaluate_suite(model, x, y, THREAT, attacks=["FGSM"], folder=folder),
        "corruptions": lambda model, folder: acl_plugin.evaluate_corruptions(
            model, x, y, names=["fog"], source=same, folder=folder
        ),
        "embedding": lambda model, folder: acl_plugin.evaluate_embedding(model, x, THREAT, folder=folder),
    }
    for name, call in calls.items():
        call(Scaled(1), tmp_path / name)
        with pytest.raises(UsageError, match="Pass `overwrite`"):
            call(Scaled(2), tmp_path / name)


def test_folders_of_other_things_are_refused(model, data, tmp_path):
    x, y = data
    (tmp_path / "file").write_text("x")
    (tmp_path / "run").mkdir()
    RunDir(tmp_path / "run").start(preset("digits", **TINY))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for name, message in {"file": "is a file", "run": "is a run folder", "other": "not empty and has no"}.items():
        with pytest.raises(UsageError, match=message) as error:
            acl_plugin.evaluate(model, x, y, THREAT, folder=tmp_path / name, overwrite=True)
        assert error.value.parameter == "folder"


class Noisy(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] + torch.rand(len(x), 10)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such\nlayer")


class LateNan(nn.Module):
    """Gives NaN for dark images, of which there is none among the first ones."""

    def forward(self, x):
        return x.flatten(1)[:, :10] / (x.flatten(1).amax(1, keepdim=True) > 0)


def inference_weights():
    with torch.inference_mode():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Listed(torch.utils.data.Dataset):
    """Items of a list, in which an exception is raised."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        if isinstance(self.items[position], Exception):
            raise self.items[position]
        return self.items[position]


def loaded(items):
    return DataLoader(Listed(items), batch_size=1)


LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class By(nn.Module):
    """Calls a function, in which the model can go wrong."""

    def __init__(self, call):
        super().__init__()
        self.linear, self.call = copy.deepcopy(LINEAR), call

    def forward(self, x):
        return self.call(self.linear, x)


def without_gradient(linear, x):
    with torch.no_grad():
        return linear(x)


WRONG = {
    "squeezed": (lambda linear, x: linear(x).squeeze(), r"gives \(10,\) for one image: .*also for one image"),
    "of four images": (lambda linear, x: linear(x.view(4, 64)), "fails on one image of 1 x 8 x 8: RuntimeError"),
    "no_grad": (without_gradient, r"no gradient with respect to the images.* is there a torch.no_grad"),
    "inference_mode": (torch.inference_mode()(lambda linear, x: linear(x)), "no gradient|torch.inference_mode"),
    "detach": (lambda linear, x: linear(x.detach()), "no gradient with respect to the images"),
    "numpy": (lambda linear, x: linear(torch.from_numpy(x.numpy())), "fails on 2 images of 1 x 8 x 8 with gradients"),
    "in place": (lambda linear, x: linear(x.sub_(0.3)), "changes its input in place"),
    "in place, no values": (lambda linear, x: linear(x.clamp_(0, 1)), "fails on 2 images .* with gradients"),
    "bfloat16": (lambda linear, x: linear(x).bfloat16(), r"in torch.bfloat16; .*\.float\(\)"),
    "float64": (lambda linear, x: linear(x).double(), "in torch.float64"),
    "whole numbers": (lambda linear, x: linear(x).long(), "in torch.int64"),
    "a dictionary": (lambda linear, x: {"logits": linear(x)}, "gives dict for 4 images"),
}


@pytest.mark.parametrize("evaluate", [acl_plugin.evaluate, acl_plugin.evaluate_suite, acl_plugin.evaluate_embedding])
@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_cannot_be_attacked_is_refused_and_images_stay(name, evaluate, tmp_path):
    call, message = WRONG[name]
    images, labels = X.clone(), () if evaluate is acl_plugin.evaluate_embedding else (Y,)
    with pytest.raises(UsageError, match=message) as error:
        evaluate(By(call), images, *labels, threat=THREAT, folder=tmp_path / "new")
    assert error.value.parameter == "model"
    assert "\n" not in str(error.value)
    assert torch.equal(images, X)
    assert not (tmp_path / "new").exists()


def exported(model):
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (X,), dynamic_shapes=({0: batch},)).module()


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda model: torch.jit.freeze(torch.jit.script(model)), exported],
    ids=["script", "frozen script", "export"],
)  # fmt: skip
def test_compiled_programs_are_evaluated_as_the_model(compiled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).eval()
    program = compiled(model)
    before = [getattr(module, "training", None) for module in program.modules()]
    for evaluate in (acl_plugin.evaluate, acl_plugin.evaluate_suite, acl_plugin.evaluate_embedding):
        given = (X,) if evaluate is acl_plugin.evaluate_embedding else (X, Y)
        ours, theirs = (evaluate(each, *given, threat=THREAT).values for each in (program, model))
        same = {"clean_accuracy", "images", "n", "seed"} & ours.keys()  # attacks follow the rounding of a program
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    modes = [getattr(module, "training", None) for module in program.modules()]
    assert modes == before


def test_sparse_buffers_are_restored():
    model = By(lambda linear, x: linear(x))
    model.register_buffer("table", torch.eye(3).to_sparse())
    acl_plugin.evaluate_suite(model, X, Y, THREAT, attacks=["FGSM"])
    assert torch.equal(model.table.to_dense(), torch.eye(3))


def test_corruptions_need_no_gradient():
    source = ("as they are", lambda name, severity: (X, Y))
    found = [
        acl_plugin.evaluate_corruptions(By(call), X, Y, names=["fog"], source=source).mean
        for call in (without_gradient, lambda linear, x: linear(x))
    ]
    assert found[0] == found[1]


X, Y = torch.linspace(0, 1, 4 * 64).view(4, 1, 8, 8), torch.arange(4)
DARK = torch.cat([X.repeat(20, 1, 1, 1), torch.zeros(1, 1, 8, 8)])


@pytest.mark.parametrize(
    ("given", "parameter", "message"),
    [
        ({"model": lambda x: x}, "model", "is function; allowed is a torch.nn.Module"),
        ({"model": inference_weights}, "model", "made under torch.inference_mode"),
        ({"model": nn.LazyLinear(10)}, "model", "not initialized; call it on a batch"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half()},
            "model",
            "float16; attacks compute in float32",
        ),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()}, "model", "float64; attacks .* call float"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to("meta")}, "model", "on the meta device, without"),
        ({"model": Noisy()}, "model", "other logits for the same images"),
        ({"model": Failing()}, "model", "fails on 4 images of 1 x 8 x 8: RuntimeError: no such layer"),
        ({"model": nn.Flatten(0)}, "model", r"gives \(256,\) for 4 images"),
        ({"model": nn.Sequential(LINEAR, nn.Softmax(1))}, "model", "gives probabilities"),
        ({"model": LateNan(), "images": DARK, "labels": torch.zeros(81, dtype=torch.long)}, "model", "for image 80"),
        ({"images": (255 * X).to(torch.uint8)}, "images", "divide 8-bit images by 255"),
        ({"images": X - 0.5}, "images", r"images in \[-0.5, 0.5\]: allowed is \[0, 1\]; normalize inside the model"),
        ({"images": X * 1.000001}, "images", r"images in \[0, 1.00000\d+\]: .*; call clamp\(0, 1\) on them"),
        ({"images": X / 255}, "images", r"images in \[0, 0.00392\]: .*; divide 8-bit images by 255 once"),
        ({"images": X.to_sparse()}, "images", "a tensor of torch.sparse_coo on cpu; allowed are"),
        ({"images": X.to("meta")}, "images", "a tensor of torch.strided on meta; allowed are"),
        ({"images": X * float("nan")}, "images", "images with NaN: allowed"),
        ({"images": X[0]}, "images", r"\(1, 8, 8\) of torch.float32; allowed are \(B, C, H, W\)"),
        ({"images": X.numpy()}, "images", "is numpy.ndarray; allowed is a tensor"),
        ({"images": X[:0], "labels": Y[:0]}, "images", "is empty"),
        ({"images": TensorDataset(X[:0], Y[:0]), "labels": None}, "images", "TensorDataset is empty"),
        ({"images": TensorDataset(X, Y)}, "labels", "are given with a TensorDataset"),
        ({"images": TensorDataset(X), "labels": None}, "images", "is a tuple of 1; allowed is a pair"),
        ({"images": TensorDataset(X, Y, Y), "labels": None}, "images", "is a tuple of 3; allowed is a pair"),
        ({"images": TensorDataset(X[:, 0, 0], Y), "labels": None}, "images", r"has shape \(8,\); .*\(C, H, W\)"),
        ({"labels": None}, "labels", "are missing"),
        ({"labels": Y[:3]}, "labels", r"\(3,\) of torch.int64; allowed are \(4,\) whole numbers"),
        ({"labels": Y.float()}, "labels", "of torch.float32; allowed are"),
        ({"labels": ["a"] * 4}, "labels", "list; allowed are"),
        ({"labels": [True] * 4}, "labels", "list; allowed are"),
        ({"labels": [2**70] * 4}, "labels", "ndarray; allowed are"),
        ({"labels": Y.numpy().astype(float)}, "labels", "ndarray; allowed are"),
        ({"images": [(X[0], "cat")]}, "labels", "a label of the Listed is 'cat'; allowed is a whole number"),
        ({"images": [(X[0], None)]}, "labels", "a label of the Listed is None; allowed is a whole number"),
        ({"images": [(X[0], torch.eye(3)[0])]}, "labels", r"a label of the Listed is shape \(3,\)"),
        ({"images": [FileNotFoundError("no photo")]}, "images", "the Listed fails: FileNotFoundError: no photo"),
        ({"images": loaded([(X[0], "cat")])}, "labels", "a label of the DataLoader is .*cat"),
        ({"images": loaded([FileNotFoundError("no photo")])}, "images", "the DataLoader fails: FileNotFoundError"),
        ({"labels": Y + 7}, "labels", "from 7 to 10: the model has 10 classes"),
        ({"labels": Y - 1}, "labels", "from -1 to 2"),
        ({"threat": None}, "threat", "is missing; allowed is a ThreatModel"),
        ({"threat": "Linf"}, "threat", "is str; allowed"),
        ({"seed": -1}, "seed", "allowed is a whole number from 0"),
        ({"batch_size": 0}, "batch_size", "allowed is a whole number from 1"),
        ({"device": "toaster"}, "device", "this machine has none, or it is unknown"),
        ({"classes": ["a", "b"]}, "classes", "logits of 10 classes; 2 names of classes are given"),
        ({"classes": "abcdefghij"}, "classes", "allowed is a list of 10 names"),
        ({"classes": set("abcdefghij")}, "classes", "allowed is a list of 10 names"),
        ({"classes": 10}, "classes", "allowed is a list of 10 names"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(given, parameter, message, tmp_path):
    if isinstance(given.get("images"), list):
        given = {"images": Listed(given["images"])}
    if isinstance(given.get("images"), Listed | DataLoader):
        given = {"labels": None} | given
    arguments = {"model": LINEAR, "images": X, "labels": Y, "threat": THREAT, "folder": tmp_path / "new"} | given
    if arguments["model"] is inference_weights:
        arguments["model"] = inference_weights()
    is_module = isinstance(arguments["model"], nn.Module) and given.get("model") is not inference_weights
    before = [torch.get_rng_state(), [m.training for m in arguments["model"].modules()] if is_module else None]
    with pytest.raises(UsageError, match=message) as error:
        acl_plugin.evaluate(**arguments)
    assert error.value.parameter == parameter
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    after = [torch.get_rng_state(), [m.training for m in arguments["model"].modules()] if is_module else None]
    assert same(before, after)


@pytest.mark.parametrize(
    "labels", [range(4), [np.int64(i) for i in range(4)], tuple(range(4)), np.arange(4, dtype="u1")]
)
def test_sequences_of_whole_numbers_are_labels(labels):
    assert torch.equal(collect(X, labels)[1], Y)


@pytest.mark.e2e
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_images_of_other_strides_are_evaluated(norm, few):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    x = torch.rand(4, 3, 8, 8)
    expected = acl_plugin.evaluate(model, x, Y, ThreatModel(norm, 0.05)).verdicts
    nhwc = torch.from_numpy(x.permute(0, 2, 3, 1).contiguous().numpy())
    for other in (x.to(memory_format=torch.channels_last), nhwc.permute(0, 3, 1, 2)):
        assert not other.is_contiguous()
        assert acl_plugin.evaluate(model, other, Y, ThreatModel(norm, 0.05)).verdicts == expected


def test_images_that_are_no_tensors_name_the_transform():
    from PIL import Image

    pairs = [(Image.new("L", (8, 8)), 0)] * 2

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, position):
            return pairs[position]

    with pytest.raises(UsageError, match=r"has Image; allowed .*add torchvision.transforms.ToTensor\(\)"):
        acl_plugin.evaluate(LINEAR, Pictures(), threat=THREAT)


def test_an_error_in_the_middle_leaves_model_and_process_as_they_were(unchanged, data, few, monkeypatch):
    x, y = data

    def fail(*_, **__):
        unchanged[0].running_mean.add_(1)
        unchanged.train()
        torch.rand(3)
        raise ZeroDivisionError

    monkeypatch.setattr("acl_plugin.evaluation.autoattack.run_attack", fail)
    with pytest.raises(ZeroDivisionError):
        acl_plugin.evaluate(unchanged, x, y, THREAT)


@pytest.mark.e2e
def test_the_suite_keeps_rows_and_has_the_policy_of_all(unchanged, data, tmp_path):
    x, y = data
    folder = tmp_path / "kept"
    first = acl_plugin.evaluate_suite(unchanged, x, y, THREAT, attacks=["FGSM"], folder=folder)
    assert first.worst_case == first.values["rows"]["FGSM"]["accuracy"]
    assert json.loads((folder / "suite.json").read_text()) == first.values
    more = acl_plugin.evaluate_suite(unchanged, x, y, THREAT, attacks=["FGSM", "PGD-20"], folder=folder)
    assert more.values["rows"]["FGSM"] == first.values["rows"]["FGSM"]
    assert "  PGD-20" in str(more)
    with pytest.raises(UsageError, match="seed 1, there 0.*Pass `overwrite`"):
        acl_plugin.evaluate_suite(unchanged, x, y, THREAT, attacks=["FGSM"], folder=folder, seed=1)
    other = acl_plugin.evaluate_suite(unchanged, x, y, THREAT, attacks=["FGSM"], folder=folder, seed=1, overwrite=True)
    assert list(other.values["rows"]) == ["FGSM"]
    with pytest.raises(UsageError, match="TIFGSM' takes images of 3 channels") as error:
        acl_plugin.evaluate_suite(unchanged, x, y, THREAT, attacks=["TIFGSM"])
    assert error.value.parameter == "attacks"


@pytest.mark.e2e
def test_corruptions_of_ones_own_images(tmp_path):
    pytest.importorskip("imagecorruptions")
    torch.manual_seed(0)
    network, x, y = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)),
        torch.rand(6, 3, 32, 32),
        torch.arange(6) % 4,
    )
    found = acl_plugin.evaluate_corruptions(network, x, y, names=["fog", "pixelate"], folder=tmp_path / "kept")
    assert list(found.values["accuracy"]) == ["fog", "pixelate"]
    assert found.mean == pytest.approx(sum(sum(row) for row in found.values["accuracy"].values()) / 10)
    assert found.clean_accuracy == (network(x).argmax(1) == y).double().mean().item()
    assert "  fog" in str(found)
    assert network.training
    again = acl_plugin.evaluate_corruptions(network, x, y, names=["fog"], folder=tmp_path / "kept")
    assert again.values["accuracy"] == found.values["accuracy"]
    with pytest.raises(UsageError, match="different settings .*Pass `overwrite`"):
        acl_plugin.evaluate_corruptions(network, x[:4], y[:4], folder=tmp_path / "kept")
    with pytest.raises(UsageError, match="unknown corruption 'frog'"):
        acl_plugin.evaluate_corruptions(network, x, y, names=["frog"])
    published = {severity: torch.full((6, 3, 32, 32), severity / 5) for severity in range(1, 6)}
    own = acl_plugin.evaluate_corruptions(
        network, x, y, names=["snow"], source=("mine", lambda name, severity: (published[severity], y))
    )
    expected = [(network(published[s]).argmax(1) == y).double().mean().item() for s in range(1, 6)]
    assert (own.values["source"], own.values["accuracy"]["snow"]) == ("mine", expected)


@pytest.mark.parametrize("source", ["mine", ("mine",), ("mine", 3), lambda name, severity: (X, Y)])
def test_a_source_is_a_name_and_a_function(source):
    with pytest.raises(UsageError, match="allowed is a pair of a name and a function") as error:
        acl_plugin.evaluate_corruptions(LINEAR, X, Y, source=source)
    assert error.value.parameter == "source"


@pytest.mark.parametrize("fault", [KeyError("fog"), ZeroDivisionError(), FileNotFoundError("no such file")])
def test_a_source_can_fail_in_any_way(fault):
    def broken(name, severity):
        raise fault

    with pytest.raises(UsageError, match=f"`source`, fog of severity 1: {type(fault).__name__}"):
        acl_plugin.evaluate_corruptions(LINEAR, X, Y, names=["fog"], source=("mine", broken))


def test_other_corruptions_are_checked():
    pytest.importorskip("imagecorruptions")
    torch.manual_seed(0)
    network, x, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    for wrong, message in {
        "of 8 bits": ((255 * x, y), "images in ["),
        "normalized": (((x - 0.5) / 0.25, y), "images in ["),
        "of integers": (((255 * x).byte(), y), "uint8"),
        "labels in a column": ((x, y[:, None]), "`labels`"),
        "one-hot labels": ((x, nn.functional.one_hot(y)), "`labels`"),
        "labels above": ((x, y + 1), "`labels` from 1 to 4"),
        "a part": ((x[:5], y[:5]), "shape"),
        "images alone": (x, "source"),
    }.values():
        source = ("mine", lambda name, severity, wrong=wrong: wrong)
        with pytest.raises(UsageError, match="`source`, snow of severity 1: ") as error:
            acl_plugin.evaluate_corruptions(network, x, y, names=["snow"], source=source)
        assert error.value.parameter == "source"
        assert message in str(error.value)


def test_a_model_that_rounds_is_flagged_where_attacks_by_gradient_have_no_effect(data, few):
    x, y = data
    rounding = By(lambda linear, images: linear((255 * images).round() / 255))
    found = acl_plugin.evaluate_suite(rounding, x, y, THREAT, attacks=["FGSM"])
    assert found.flags[0].startswith(f"{len(x)} of {len(x)} images have zero gradient")
    assert "warning: " in str(found)
    assert any("zero gradient" in line for line in tables.suite(found.values | {"dataset": "digits"}))
    assert (
        acl_plugin.evaluate_suite(By(lambda linear, images: linear(images)), x, y, THREAT, attacks=["FGSM"]).flags == ()
    )
    centered = By(lambda linear, images: linear(images) - linear(images).mean(1, keepdim=True))  # of which the sum is 0
    assert acl_plugin.evaluate_suite(centered, x, y, THREAT, attacks=["FGSM"]).flags == ()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(unchanged, data, tmp_path):
    (tmp_path / "kept").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="kept cannot be written") as error:
        acl_plugin.evaluate(unchanged, *data, THREAT, folder=tmp_path / "kept")
    assert error.value.parameter == "folder"


def test_the_public_names():
    assert isinstance(acl_plugin.evaluate, type(test_the_public_names))
    assert {"evaluate", "evaluate_suite", "evaluate_corruptions", "Evaluation"} <= set(acl_plugin.__all__)
    assert acl_plugin.Evaluation is Evaluation
