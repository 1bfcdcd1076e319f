"""The page of a run: its sections, its strings, and how a real browser shows it."""

import html.parser
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from acl_plugin import pipeline
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.evaluation import embedding
from acl_plugin.evaluation.encoder_folder import evaluate_embedding
from acl_plugin.evaluation.run_folder import evaluate_suite
from acl_plugin.evaluation.verdicts import wilson
from acl_plugin.reporting import figures, report
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import read_json, write_json
from acl_plugin.theory import audit
from conftest import QUICK, TINY, shorten

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
CPU = torch.device("cpu")
SETTINGS = TINY | {"limit_train": 48, "limit_test": 24, "keep_every": 1}


class Page(html.parser.HTMLParser):
    """Which elements, attributes and words a page has."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.words, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run with everything measured, and one that is only pretrained."""
    from acl_plugin.training.pretrain import pretrain

    folder, config = tmp_path_factory.mktemp("runs"), preset("digits", **SETTINGS | QUICK)
    whole = RunDir(folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        patch.setattr(figures, "svg", lambda figure: b"<svg></svg>")
        patch.setenv("ACL_PLUGIN_HOME", str(folder / "home"))
        pipeline.run(config, whole.path)
        evaluate_suite(whole, config, CPU, ["FGSM", "PGD-20"])
        patch.setattr(embedding, "ATTACKS", ("PGD-20",))
        evaluate_embedding(whole, config, CPU)
        audit.audit([whole], whole, "all", 24, CPU)
    return whole, pretrain(preset("digits", **SETTINGS | {"objective": "simclr"}), folder / "begun")


@pytest.mark.e2e
def test_a_page_has_every_section_and_nothing_from_outside(runs):
    whole, _ = runs
    assert main(["report", str(whole.path)]) == 0
    text = whole.report_file.read_text()
    page = Page(text)
    assert not page.open
    for section in (
        "Attacks",
        "Features without a head",
        "Images and features",
        "Why it is robust, or not",
        "Pretraining",
        "Settings",
    ):
        assert section in page.words
    evaluation = read_json(whole.evaluation_file)
    assert f"{100 * evaluation['robust_accuracy']:.2f} %" in page.words
    assert "bounds on the robust loss" in page.words
    assert "PGD-20 by eps" in page.words
    assert "--temperature" not in page.words
    assert "--objective-kwargs" in page.words
    assert page.elements.count("img") == 9  # the audit has its bounds, terms by class, and tightness by epoch
    assert "script" not in page.elements
    assert "link" not in page.elements
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "Not measured yet" not in page.words


@pytest.mark.e2e
def test_what_is_missing_shows_the_command(runs, tmp_path):
    _, begun = runs
    assert main(["report", str(begun.path), "--out", str(tmp_path / "page.html")]) == 0
    words = Page((tmp_path / "page.html").read_text()).words
    for command in (
        "evaluate RUN",
        "evaluate RUN --suite standard",
        "evaluate RUN --suite embedding",
        "probe RUN",
        "audit RUN --checkpoints all",
    ):
        assert f"Not measured yet: acl-plugin {command.replace('RUN', str(begun.path))}" in words
    assert "nce_clean" not in words  # it is in a figure, whose text is drawn


@pytest.mark.e2e
def test_several_runs_are_compared(runs, tmp_path, undrawn):
    assert main(["report", *(str(run.path) for run in runs), "--out", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.elements.count("h1") == 3
    assert page.words.index("backbone") < page.words.index("Images and features")
    assert all(str(run.path) in page.words for run in runs)


@pytest.mark.e2e
def test_strings_from_files_are_shown_and_not_obeyed(runs, tmp_path, undrawn):
    whole, _ = runs
    copied = RunDir(tmp_path / "<img src=x onerror=alert(1)>")
    shutil.copytree(whole.path, copied.path)
    evil = "<script>alert('x')</script>\"onload=\"alert(1)"
    write_json(copied.evaluation_file, read_json(copied.evaluation_file) | {"flags": [evil]})
    write_json(copied.path / "environment.json", {"device": evil, "packages": {evil: evil}})
    found = read_json(copied.audit_file)
    found["rows"][-1]["bounds"][1]["assumption"] = evil
    write_json(copied.audit_file, found)
    report.report([copied], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert "script" not in page.elements
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.words.count("alert('x')") >= 3
    assert page.elements.count("img") == 9


@pytest.mark.e2e
def test_an_audit_of_an_earlier_version_is_one_line(runs, tmp_path, undrawn):
    whole, _ = runs
    copied = RunDir(shutil.copytree(whole.path, tmp_path / "run"))
    found = read_json(copied.audit_file)
    write_json(copied.audit_file, {name: value for name, value in found.items() if name != "version"})
    report.report([copied], tmp_path / "page.html")
    words = Page((tmp_path / "page.html").read_text()).words
    assert f"Of an earlier version; repeat: acl-plugin audit {copied.path} --checkpoints all" in words
    assert "bounds on the robust loss" not in words


@pytest.mark.e2e
def test_images_that_are_not_here_are_reported(runs, tmp_path, undrawn):
    whole, _ = runs
    copied = RunDir(tmp_path / "run")
    shutil.copytree(whole.path, copied.path)
    text = copied.config_file.read_text().replace("data: digits\n", "data: cifar10\n")
    copied.config_file.write_text(text)
    report.report([copied], copied.report_file)
    assert "cifar10 needs --data-dir" in Page(copied.report_file.read_text()).words


@pytest.mark.parametrize("arguments", [["nowhere"], []])
def test_mistakes(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(("share", "n"), [(0.0, 20), (0.5, 40), (0.83, 250), (1.0, 7)])
def test_wilsons_interval(share, n):
    """The shares p at which the observed one is 1.96 standard deviations away."""
    low, high = wilson(share, n)
    for bound in (low / 100, high / 100):
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), rel=1e-6)
    assert low <= 100 * share <= high


def test_a_perturbation_of_eps_is_white_and_none_is_grey():
    images = torch.full((2, 1, 4, 4), 0.5)
    moved = images.clone()
    moved[:, :, 0, 0] += 0.1
    figure = figures.image_grid(images, moved, [("a", "b")] * 2, 0.1)
    shown = figure.axes[4].images[0].get_array()
    assert shown[0, 0] == pytest.approx(1.0)
    assert shown[1, 1] == pytest.approx(0.5)


NAME = "$5_$ and $$ \\$ ^"
ROW = {"terms": {"R": 1.0}, "by_class": {NAME: {"R": 1.0}, "b": {"R": 2.0}}}
POINTS = torch.rand(4, 2)
NAMED = {
    "classes of an audit": lambda: figures.audit_classes(ROW),
    "terms": lambda: figures.losses([1, 2], {NAME: [1.0, 2.0]}),
    "runs": lambda: figures.accuracies(["clean"], {NAME: [0.5], "b": [0.5]}),
    "runs by eps": lambda: figures.accuracy_by_eps({NAME: [{"eps": 0.1, "accuracy": 0.5}], "b": []}),
    "classes of images": lambda: figures.image_grid(
        torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4), [(NAME, NAME)], 0.1
    ),
    "classes of features": lambda: figures.feature_map(POINTS, POINTS, torch.tensor([0, 1, 0, 1]), [NAME, "b"]),
}


@pytest.mark.parametrize("names", NAMED)
def test_names_are_no_formulas(names, monkeypatch):
    """What is drawn is the name, and no formula is read."""
    from matplotlib.text import Text

    drawn, original = [], Text._preprocess_math
    monkeypatch.setattr(Text, "_preprocess_math", lambda self, s: drawn.append(original(self, s)) or drawn[-1])
    figures.svg(NAMED[names]())
    assert (NAME, False) in drawn
    assert not any(formula for _, formula in drawn)


@pytest.mark.parametrize("names", NAMED)
def test_names_of_files_that_are_no_text_are_drawn_by_their_bytes(names, monkeypatch):
    monkeypatch.setitem(globals(), "NAME", "c\udcff")
    assert figures.svg(NAMED[names]()).startswith(b"<?xml")
    assert figures.plain("c\udcff") == "c\\udcff"


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize(("width", "dark"), [(1000, False), (390, False), (1000, True)])
def test_a_browser_shows_it(runs, tmp_path, width, dark):
    """On a desk, on a phone, and in dark mode."""
    whole, _ = runs
    report.report([whole], tmp_path / "page.html")
    shot = tmp_path / "shot.png"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},1500", f"--screenshot={shot}", "--hide-scrollbars"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, timeout=120, check=True)
    picture = Image.open(shot).convert("L")
    background, (low, high) = picture.getpixel((2, 2)), picture.getextrema()
    assert (background < 60) if dark else (background > 240)
    assert high - low > 150  # there is ink on it
    inked = (np.abs(np.asarray(picture, dtype=int) - background) > 60).mean()
    assert 0.01 < inked < 0.9


@pytest.fixture
def without_figures(monkeypatch, undrawn):
    """What is said about a run, without its figures."""
    for name in ("accuracies", "accuracy_by_eps", "audit", "audit_classes", "audit_epochs", "losses"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    monkeypatch.setattr(report._Run, "pictures", lambda self: [])


@pytest.mark.e2e
def test_what_is_partial_or_of_another_model_or_other_images_is_marked(finished_run, tmp_path, without_figures):
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished_run, run.path)

    def page():
        report.report([run], run.report_file)
        return run.report_file.read_text()

    whole = page()
    for mark in ("Partial:", "Unfinished:", "earlier classifier", "other images"):
        assert mark not in whole
    for path in (run.suite_file, run.audit_file):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    assert page().count("Partial:") == 2
    suite = json.loads(run.suite_file.read_text())
    suite["images"]["pixels"] = "other"
    run.suite_file.write_text(json.dumps(suite | {"weights_sha256": "other"}))
    assert "The suite of attacks is of an earlier classifier" in page()
    assert "The suite of attacks was measured on other images" in page()
    assert "The evaluation is of an earlier classifier" not in page()
    run.encoder_file.unlink()
    assert "Unfinished:" in page()


@pytest.mark.e2e
def test_accuracies_under_corruptions_are_shown_wherever_they_are(finished_run, tmp_path, without_figures, capsys):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    found = read_json(run.evaluation_file)
    of = {name: found[name] for name in ("dataset", "n", "seed", "images", "weights_sha256")}
    corrupted = of | {"source": "own files", "mean": 0.25, "accuracy": {"fog": [0.25] * 5}, "complete": True}
    named, alone = run.evaluation("c"), RunDir(tmp_path / "alone")
    for folder in (run, named, alone):
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.corruptions_file, corrupted)
    for folder, number in ((run, 2), (alone, 1)):
        assert main(["report", str(folder.path)]) == 0
        words = Page(folder.report_file.read_text()).words
        assert (
            words.count("Common corruptions") == words.count(f"own files, {of['n']} test images, severities") == number
        )
        assert "earlier classifier" not in words
        assert "Partial" not in words
    assert f"digits, {of['n']} test images, seed 0." in words
    write_json(named.corruptions_file, corrupted | {"weights_sha256": "other", "complete": False})
    assert main(["report", str(run.path)]) == 0
    words = Page(run.report_file.read_text()).words
    assert words.count("The accuracy under corruptions is of an earlier classifier of this run.") == 1
    assert f"Partial: to finish it, run acl-plugin evaluate {run.path} --name c --suite corruptions" in words


@pytest.mark.e2e
def test_named_evaluations_of_an_earlier_classifier_are_marked(finished_run, tmp_path, without_figures):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    named = run.evaluation("again")
    named.path.mkdir(parents=True)
    write_json(named.evaluation_file, read_json(run.evaluation_file) | {"weights_sha256": "other"})
    for file in run.results():
        file.unlink(missing_ok=True)
    report.report([run], run.report_file)
    assert run.report_file.read_text().count("The evaluation is of an earlier classifier") == 1


@pytest.mark.e2e
def test_accuracies_have_the_threat_model_and_the_attack_of_their_evaluation(finished_run, tmp_path, without_figures):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    other = {"threat_model": "L2", "eps": 0.01, "seed": 5, "version": "AA-reduced"}
    write_json(run.evaluation_file, read_json(run.evaluation_file) | other)
    report.report([run], run.report_file)
    assert "AA-reduced, L2 eps 0.01, seed 5" in Page(run.report_file.read_text()).words


@pytest.mark.e2e
def test_results_of_two_models_in_one_folder_are_marked(finished_run, tmp_path, without_figures):
    run, own = RunDir(finished_run), RunDir(tmp_path / "own")
    own.path.mkdir()
    shutil.copyfile(run.evaluation_file, own.evaluation_file)
    shutil.copyfile(run.suite_file, own.suite_file)
    report.report([own], tmp_path / "same.html")
    assert "another model" not in (tmp_path / "same.html").read_text()
    write_json(own.suite_file, read_json(run.suite_file) | {"weights_sha256": "other"})
    report.report([own], tmp_path / "two.html")
    assert "The suite of attacks is of another model than the first result" in (tmp_path / "two.html").read_text()


def test_an_evaluation_without_a_result_is_named(tmp_path):
    write_json(tmp_path / "evaluation_key.json", {})
    with pytest.raises(UsageError, match="its evaluation has no result yet; repeat the command to finish it"):
        report.report([tmp_path], tmp_path / "page.html")


@pytest.mark.e2e
def test_runs_on_different_images_are_not_compared_in_silence(finished_run, tmp_path, without_figures):
    runs = [RunDir(tmp_path / name) for name in "ab"]
    for run in runs:
        shutil.copytree(finished_run, run.path)
    out = tmp_path / "both.html"
    report.report(runs, out)
    assert "different images, threat models or attacks" not in out.read_text()
    evaluation = json.loads(runs[1].evaluation_file.read_text())
    runs[1].evaluation_file.write_text(json.dumps(evaluation | {"eps": 0.2}))
    report.report(runs, out)
    assert "different images, threat models or attacks" in out.read_text()
