"""``acl-plugin evaluate --model``: models of files, modules, timm and RobustBench."""

import json
import sys

import pytest
import torch
from PIL import Image
from torch import nn

import acl_plugin
from acl_plugin.cli.main import main
from acl_plugin.cli.model_source import Normalized, input_size, load_model
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.registry import SUITES

SOURCE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

model = build()

class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(False)  # and returns nothing, as many overridden methods do

def frozen():
    torch.manual_seed(0)
    return Frozen(nn.Flatten(), nn.Linear(64, 10))

def ends():
    raise SystemExit(3)

def text():
    return "no module"

def broken():
    raise KeyError("weights.pt")

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def empty():
    with torch.device("meta"):
        return build()

def noisy():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Noise())

class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)
"""
GIVEN = ["--data", "digits", "--limit-test", "12", "--accelerator", "cpu", "--eval-batch-size", "6"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module and a file, in which the command is run."""
    (tmp_path / "my_networks.py").write_text(SOURCE)
    (tmp_path / "failing.py").write_text("import no_such_package")
    (tmp_path / "ending.py").write_text("import sys\ndef build(): ...\nsys.exit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_networks", None)


def built():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.mark.e2e
@pytest.mark.parametrize(
    "source", ["my_networks:build", "my_networks.py:build", "my_networks:model", "my_networks:frozen"]
)
def test_a_model_or_function_of_a_module_or_file(here, few, capsys, source):
    assert main(["evaluate", "--model", source, *GIVEN, "--out", "own"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "digits, Linf, eps 0.1, 12 test images, seed 0"
    assert printed[2].split()[0] == source
    assert printed[-1] == "results: own"
    values = json.loads((here / "own" / "evaluation.json").read_text())
    test = datasets.load(preset("digits", limit_test=12).data).test
    expected = acl_plugin.evaluate(
        built(), test.floats(), test.labels, acl_plugin.ThreatModel("Linf", 0.1), batch_size=6
    )
    same = ("clean_accuracy", "robust_accuracy", "n", "eps", "seed", "weights_sha256", "version")
    assert {name: values[name] for name in same} == {name: expected.values[name] for name in same}
    assert values["dataset"] == "digits"
    assert main(["evaluate", f"--model={source}", *GIVEN, "--out", "own", "--seed", "1"]) == 2
    assert "seed 1, there 0). Pass --overwrite to replace it" in capsys.readouterr().err
    assert main(["evaluate", f"--model={source}", *GIVEN, "--out", "own", "--seed", "1", "--overwrite"]) == 0


@pytest.mark.e2e
def test_a_file_of_results_and_the_suite(here, few, capsys):
    source = ["evaluate", "--model", "my_networks:build", *GIVEN]
    assert main([*source, "--out", "result.json", "--norm", "L2", "--eps", "1/2"]) == 0
    values = json.loads((here / "result.json").read_text())
    assert (values["threat_model"], values["eps"], len(values["verdicts"])) == ("L2", 0.5, 12)
    assert main([*source, "--out", "result.json"]) == 2
    assert "--out result.json exists; pass --overwrite" in capsys.readouterr().err
    assert main([*source, "--out", "folder", "--suite", "standard", "--attacks", '["FGSM"]']) == 0
    assert "FGSM" in capsys.readouterr().out
    assert json.loads((here / "folder" / "suite.json").read_text())["dataset"] == "digits"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "my_networks:bild"], "unknown function of my_networks: 'bild'; the nearest: build"),
        (["--model", "my_networks"], "--model my_networks has no name after a colon; allowed: my_module:build or"),
        (["--model", "my_networks:empty"], "--model has weights on the meta device, without values; load them first"),
        (["--model", "no_such_module:build"], "cannot be imported: ModuleNotFoundError: No module named"),
        (["--model", "missing.py:build"], "is not there: no file missing.py"),
        (["--model", "failing.py:build"], "cannot be executed: ModuleNotFoundError: No module named 'no_such_package'"),
        (["--model", "ending.py:build"], "cannot be executed: SystemExit: 0"),
        (["--model", "ending:build"], "cannot be imported: SystemExit: 0"),
        (["--model", "my_networks:ends"], "gives no model: SystemExit: 3"),
        (["--model", "my_networks:text"], "returns str, not an nn.Module"),
        (["--model", "my_networks:broken"], "gives no model: KeyError: 'weights.pt'"),
        (["--model", "my_networks:torch.__version__"], "not a function"),
        (["--model", "my_networks:narrow"], "the model has logits of 3 classes; 10 names of classes are given"),
        (["--model", "my_networks:noisy"], "other logits for the same images"),
        (["--model", "timm:resnett18"], "unknown network of timm: 'resnett18'; the nearest: "),
        (["--model", "robustbench:Any"], "--data digits: RobustBench has models of cifar10"),
        (["--model", "my_networks:build", "--data", "digit"], "unknown dataset 'digit'; the nearest: digits"),
        (["--model", "my_networks:build", "--eps", "2"], "--eps"),
        (["--model", "my_networks:build", "--out", "no/result.json"], "there is no folder no"),
        (["--model", "my_networks:build", "--attacks", '["FGSM"]'], "--attacks ['FGSM'] is not used with --suite"),
        (
            ["--model=my_networks:build", "--suite=corruptions", "--eval-batch-size=null"],
            "images of 1 x 8 x 8 cannot be corrupted",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(here, capsys, arguments, message):
    before = sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts)
    assert main(["evaluate", *GIVEN, "--out", "new", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.e2e
@pytest.mark.parametrize("suite", ["autoattack", "embedding"])
def test_images_without_a_test_split_are_refused(here, capsys, suite):
    (here / "photos").mkdir()
    for number in range(3):
        Image.linear_gradient("L").rotate(90 * number).resize((8, 8)).save(here / "photos" / f"{number}.png")
    images = ["--data=image_folder", "--data-dir=photos", "--image-size=8"]
    assert main(["evaluate", "--model=my_networks:build", *images, f"--suite={suite}", "--out", "own"]) == 2
    assert "image_folder has no test images to evaluate on" in capsys.readouterr().err
    assert not (here / "own").exists()


@pytest.mark.parametrize("missing", ["--out", "--data"])
def test_what_is_missing_is_named(here, capsys, missing):
    options = {"--out": "new", "--data": "digits"}
    del options[missing]
    rest = [part for pair in options.items() for part in pair]
    assert main(["evaluate", "--model", "my_networks:build", *rest]) == 2
    assert missing.strip("-") in capsys.readouterr().err


def test_a_network_of_timm_has_its_own_normalization(monkeypatch):
    import timm

    class Network(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(64, 10))
            self.pretrained_cfg, self.num_classes = {"mean": (0.5,), "std": (0.25,)}, 10

    monkeypatch.setattr(timm, "is_model", lambda name: True)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: Network())
    model, x = load_model("timm:any.weights", "digits", "Linf", 10), torch.rand(2, 1, 8, 8)
    assert isinstance(model, Normalized)
    torch.testing.assert_close(model(x), model.network((x - 0.5) / 0.25))
    with pytest.raises(UsageError, match="has 10 classes, the dataset 3"):
        load_model("timm:any.weights", "digits", "Linf", 3)


@pytest.mark.parametrize(
    ("name", "given", "size"),
    [
        ("resnet18", [], 224), ("resnet18.a1_in1k", [], 224), ("vit_base_patch16_384", [], 384),
        ("efficientnet_b1", [], 240), ("resnet18", ["--image-size", "48"], 48),
        ("resnet18", ["--image-size", "32"], 32), ("resnet18", ["--image-size", "[24, 40]"], [24, 40]),
    ],
)  # fmt: skip
def test_images_of_ones_own_have_the_input_size_of_a_network_of_timm(name, given, size, monkeypatch):
    configs = []
    monkeypatch.setattr("acl_plugin.cli.own_model.evaluate_named", lambda config, *_: configs.append(config) or [])
    options = ["--data", "image_folder", "--data-dir", "images", "--out", "new", *given]
    assert main(["evaluate", "--model", f"timm:{name}", *options]) == 0
    assert main(["evaluate", "--model", "my_networks:build", *options]) == 0
    assert [config.data.image_size for config in configs] == [size, size if given else 32]


@pytest.mark.parametrize(
    "source", ["timm:resnett18", "timm:resnet18.none", "timm:", "timm", "robustbench:Any", "my_networks:resnet18"]
)
def test_other_sources_have_no_known_input_size(source):
    assert input_size(source) is None


@pytest.mark.e2e
def test_a_model_of_robustbench(monkeypatch):
    import robustbench

    calls, network = [], nn.Linear(2, 2)
    monkeypatch.setattr(robustbench, "load_model", lambda name, **options: calls.append((name, options)) or network)
    assert load_model("robustbench:Carmon2019Unlabeled", "cifar10", "L2", 10) is network
    assert calls == [("Carmon2019Unlabeled", {"dataset": "cifar10", "threat_model": "L2"})]


@pytest.mark.e2e
def test_a_report_of_an_evaluation_alone(here, few, capsys):
    command = ["evaluate", "--model", "my_networks:build", *GIVEN, "--out", "own"]
    assert main(command) == 0
    assert main(["report", "own"]) == 0
    page = (here / "own" / "report.html").read_text()
    assert "digits, Linf eps 0.1, 12 test images, seed 0" in page
    assert "accuracy on 12 test images" in page
    assert "acl-plugin probe" not in page
    assert main([*command, "--suite", "standard", "--attacks", '["FGSM"]']) == 0
    assert main(["report", "own"]) == 0
    assert "FGSM" in (here / "own" / "report.html").read_text()
    assert main(["report", "own", "nowhere"]) == 2


@pytest.mark.e2e
def test_overwrite_of_a_run(finished_run, tmp_path, few, capsys):
    import shutil

    run = shutil.copytree(finished_run, tmp_path / "run")
    command = ["evaluate", str(run), "--eps", "0.05"]
    assert main(command) == 2
    assert "eps 0.05, there 0.1). Pass --overwrite to replace it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert json.loads((run / "evaluation.json").read_text())["eps"] == 0.05


def test_a_suite_is_checked_before_the_model_is_built(tmp_path, capsys):
    @SUITES.register("of_folders")
    def of_folders(run, config, *, overwrite=False):
        return {}

    (tmp_path / "mine.py").write_text("raise SystemExit('built')")
    command = [
        "evaluate",
        "--model",
        f"{tmp_path / 'mine.py'}:build",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "out"),
    ]
    try:
        for suite, message in (
            ("of_folder", "unknown suite 'of_folder'; the nearest: of_folders"),
            (
                "of_folders",
                "--suite of_folders evaluates run folders; with --model allowed are autoattack",
            ),
        ):
            assert main([*command, "--suite", suite]) == 2
            assert message in capsys.readouterr().err
    finally:
        SUITES.unregister("of_folders")
    assert not (tmp_path / "out").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("given", [["--mode", "my_networks:build"], ["--config", "ev.yaml"]])
def test_a_run_and_a_model_are_not_evaluated_together(given, here, finished_run, capsys):
    (here / "ev.yaml").write_text("model: my_networks:build\n")
    assert main(["evaluate", str(finished_run), *given]) == 2
    err = capsys.readouterr().err
    assert f"--model my_networks:build is given with the run {finished_run}" in err
    assert len(err.splitlines()) == 1


@pytest.mark.e2e
def test_printed_options_are_taken_from_a_file(here, few, capsys):
    given = ["evaluate", "--model", "my_networks:build", *GIVEN, "--out", "new"]
    with pytest.raises(SystemExit):
        main([*given, "--print_config"])
    (here / "options.yaml").write_text(capsys.readouterr().out)
    assert not (here / "new").exists()
    assert main(["evaluate", "--config", "options.yaml"]) == 0
    assert (here / "new" / "evaluation.json").is_file()
    assert main(["evaluate", "--config=options.yaml", "--out", "other"]) == 0
