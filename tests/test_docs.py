"""Pages: their Python runs, links and references resolve, numbers are those of the results, and words are plain."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from test_readme import block_with

import acl_plugin
from acl_plugin import config, registry
from acl_plugin.losses.contrastive import nt_xent
from conftest import OPTIONS, ROOT, TINY

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SPEAKERS = re.compile(r"\b(tells?|told|asks|asked|anew|goes on|gone on|likewise|besides|at hand)\b")
BRITISH = re.compile(r"\w*(?:isation|colour|labelled|behaviour|\bcentre|(?:al|im|gn)is(?:e[ds]?|ing)\b)", re.IGNORECASE)


def name_of(path):
    return str(path.relative_to(ROOT))


SOURCES = sorted(Path(acl_plugin.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=name_of)
def test_words(path):
    text = path.read_text().replace("file.tell()", "")
    assert SPEAKERS.findall(text) == []
    assert BRITISH.findall(text) == []
    assert "per cent" not in text


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)(#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), (target, anchor)


def test_links_of_the_readme_are_read():
    assert len(re.findall(r"\]\((?!https?:)", (ROOT / "README.md").read_text())) > 10


def test_references_resolve():
    references = [
        reference
        for path in DOCS.rglob("*.md")
        for reference in re.findall(r"^::: (\S+)$", path.read_text(), flags=re.MULTILINE)
    ]
    assert len(references) > 15
    for reference in references:
        importlib.import_module(reference)


def test_every_room_has_a_page():
    package = Path(acl_plugin.__file__).parent
    for room in (path.parent.name for path in package.glob("*/__init__.py")):
        assert f"::: acl_plugin.{room}\n" in (DOCS / "reference" / f"{room}.md").read_text()
        assert f"[{room}]({room}.md)" in (DOCS / "reference" / "index.md").read_text()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().split("nav:")[1]))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert listed == written | {"tutorial.md"}  # of the notebook, by docs/hooks.py


def test_numbers_are_those_of_the_results():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    numbers = re.findall(r"\d+\.\d ± \d+\.\d", (DOCS / "results.md").read_text())
    assert len(numbers) == 8
    assert all(number in results for number in numbers)
    audited = (DOCS / "explanation" / "robustness.md").read_text().replace("\n", " ")
    checkpoints, runs = re.search(r"over (\d+) checkpoints of (\d+) runs", audited).groups()
    assert f"{checkpoints} checkpoints of {runs} runs" in results
    assert re.search(r"hold in (\d+ of \d+ cases)", audited)[1] in results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    registry.unregister("half_adversarial")


@pytest.mark.e2e
def test_an_objective_is_a_program_and_a_plugin(folder, few, monkeypatch):
    source = block_with("HalfAdversarial(acl_plugin.Objective)")
    assert len([line for line in source.splitlines() if line]) <= 20
    (folder / "half_adversarial.py").write_text(source)
    command = block_with("python half_adversarial.py").split()
    assert command[0] == "python"
    monkeypatch.setattr(sys, "argv", [*command[1:3], *OPTIONS, *command[3:], "--limit-test=4", "--epochs=1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[1], run_name="__main__")
    assert ended.value.code == 0
    registry.unregister("half_adversarial")
    assert json.loads((folder / "runs" / "half" / "evaluation.json").read_text())["n"] == 4
    assert "nce_half" in (folder / "runs" / "half" / "metrics.csv").read_text()
    exec(source, {"__name__": "half_adversarial"})
    assert "half_adversarial" in acl_plugin.available()


@pytest.mark.e2e
def test_a_model_of_ones_own(folder, few):
    scope = {}
    for words in ("class Standardized", "TensorDataset(images", "evaluate_suite(", "folder="):
        exec(block_with(words), scope)
    assert scope["evaluation"].n == scope["suite"].n == scope["again"].n == len(scope["images"])
    assert json.loads((folder / "evaluation.json").read_text())["n"] == scope["evaluation"].n


@pytest.mark.e2e
def test_a_network_of_ones_own(folder, few):
    scope = {}
    for words in ("norm_banks=objective.norm_banks,  #", "encoder=encoder)", "unwrap()"):
        exec(block_with(words), scope)
    assert scope["plain"].state_dict().keys() == scope["network"].state_dict().keys()
    assert scope["trained"].size == 16


@pytest.mark.e2e
def test_lightning(folder, few):
    with pytest.MonkeyPatch.context() as patch:
        small = {k: v for k, v in TINY.items() if k not in ("epochs", "limit_test", "objective")}
        patch.setitem(config.PRESETS, "digits", small)
        scope = {}
        exec(block_with("lightning.Trainer("), scope)
    assert (folder / "runs" / "acl_ds" / "evaluation.json").is_file()
    assert scope["module"].trainer.current_epoch == 2


def test_nt_xent_in_plain_torch():
    scope = {}
    exec(block_with("fill_diagonal_"), scope)
    torch.testing.assert_close(scope["loss"], nt_xent(scope["za"], scope["zb"], 0.5))


@pytest.mark.e2e
def test_a_search_of_settings(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {k: v for k, v in TINY.items() if k not in ("limit_test", "objective")}
    given, preset = re.compile(r"epochs=8,\n\s*limit_test=100"), acl_plugin.preset
    monkeypatch.setattr(acl_plugin, "preset", lambda data, **options: preset(data, **options | small))
    source = given.sub("limit_test=12", block_with("optuna.create_study")).replace("n_trials=20", "n_trials=2")
    scope = {}
    exec(source, scope)
    assert set(scope["study"].best_params) == {"lr", "temperature"}
    assert (tmp_path / "runs" / "sweep" / "1" / "evaluation.json").is_file()


def test_an_attack_on_a_model():
    scope = {}
    exec(block_with("x_adv = pgd.classifier"), scope)
    moved = (scope["x_adv"] - scope["images"]).abs().max()
    assert 0 < moved <= 8 / 255 + 1e-6


@pytest.mark.e2e
def test_the_tutorial_runs(folder, few):
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    scope = {}
    for cell in cells:
        exec(cell.replace("limit_train=512", "limit_train=128"), scope)
    assert scope["result"]["n"] == scope["config"].data.limit_test


@pytest.mark.parametrize(
    "name",
    re.findall(
        r"`((?:acl_plugin|tests|benchmarks|examples|docs)(?:/\w+)+(?:\.\w+)?|\.ci/run)`",
        (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "docs" / "decisions.md").read_text(),
    ),
)
def test_files_that_pages_name_are_there(name):
    assert "NAME" in name or (ROOT / name).exists()


def test_the_version_is_that_of_changelog_and_citation():
    (latest, *_) = re.findall(r"^## \[(\d.*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert acl_plugin.__version__ == latest
    assert f"version: {latest}\n" in (ROOT / "CITATION.cff").read_text()
