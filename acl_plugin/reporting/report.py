"""Write a self-contained HTML page for one or several runs: settings, curves, accuracies, images, and the audit.

The page has no script and loads nothing from the network. For a missing part it shows the command that creates it.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from acl_plugin import config as configuration
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data import datasets
from acl_plugin.data.subsets import subset_rows
from acl_plugin.errors import UsageError, as_flags
from acl_plugin.evaluation.storage import read_verdicts
from acl_plugin.evaluation.verdicts import after_attacks, class_names, wilson
from acl_plugin.reporting import elements, figures, tables
from acl_plugin.reporting.status import of_own_model
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runs.records import read_audit, read_metrics, read_record
from acl_plugin.runtime import seeding
from acl_plugin.runtime.defaults import usual_defaults
from acl_plugin.runtime.files import write_atomic
from acl_plugin.runtime.paths import user_path
from acl_plugin.runtime.seeding import REPORT, mixed_seed

SHOWN, MAPPED = 8, 200
"""Number of images in the grid, and in the feature map."""


@usual_defaults()
def report(runs: Sequence[RunDir | Path | str], out: Path | str) -> None:
    """Write the page of run folders, which are compared if there are several, to the HTML file ``out``.

    Raises:
        UsageError: when a folder is not a run, or ``out`` is no file in a folder that exists.
    """
    out = user_path(out, "out")
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else f"is in no folder: there is no {out.parent}"
        message = f"`out` {out} {problem}; allowed is a file in a folder that exists"
        raise UsageError(message, parameter="out", given=str(out), allowed="a file in a folder that exists")
    folders = [RunDir(run) for run in runs]
    pages = [_Evaluation(run) if of_own_model(run) else _Run(run) for run in folders]
    title = "acl_plugin: " + ", ".join(page.name for page in pages)
    body = [f"<h1>{html.escape(title)}</h1>"]
    if len(pages) > 1:
        body += _comparison(pages)
    for page in pages:
        body += [f"<h1>{html.escape(page.name)}</h1>"] if len(pages) > 1 else []
        body += page.sections()
    write_atomic(out, elements.page(title, body).encode("utf-8", "backslashreplace"))


class _Run:
    """Sections of one run, each a list of lines of HTML."""

    other = "an earlier classifier of this run"

    def __init__(self, run: RunDir) -> None:
        self.run, self.config, self.name = run, run.read_config(), str(run.path)
        self.evaluation, self.suite, self.corrupted, _ = map(_record, run.results())
        there = run.classifier_file.is_file() and (self.evaluation or self.suite or self.corrupted or run.evaluations())
        self.classifier = weights_hash(load_classifier(run.path)) if there else None
        c = self.config
        self.threat = f"{c.threat.norm} {c.threat.eps}"
        self.of_what = (c.data.data, c.objective.objective, c.encoder.backbone)
        self.command = f"acl-plugin evaluate {run.path}"

    def sections(self) -> list[str]:
        """Return all sections in order."""
        return [
            *self.summary(), *self.attacks(), *self.corruptions(), *self.embedding(), *self.others(), *self.pictures(),
            *self.audit(), *self.curves(), *self.settings(),
        ]  # fmt: skip

    def others(self) -> list[str]:
        """Return the sections of the named evaluations."""
        named = {each.path.name: _Evaluation(each, self.command, self.classifier) for each in self.run.evaluations()}
        return [line for name, page in named.items() for line in (f"<h2>Evaluation {name}</h2>", *page.sections())]

    def stale(self, record: dict[str, Any], what: str) -> list[str]:
        """Return a warning if ``record`` belongs to another classifier or other images than the run's current ones."""
        lines = []
        if self.classifier is not None and record["weights_sha256"] != self.classifier:
            lines.append(f"{what} is of {self.other}.")
        if self.evaluation is not None and record["images"] != self.evaluation["images"]:
            lines.append(f"{what} was measured on other images than AutoAttack.")
        return [f"<p class=missing>{line}</p>" for line in lines]

    def summary(self) -> list[str]:
        data, objective, backbone = self.of_what
        epochs, seed = self.config.training.epochs, self.config.machine.seed
        norm, eps = self.config.threat.norm, self.config.threat.eps
        details = f"{objective} on {data}, {backbone}, {epochs} epochs, {norm} eps {eps}, seed {seed}"
        lines = [f"<p>{html.escape(details)}.</p>"]
        if not self.run.encoder_file.is_file():
            lines.append(
                elements.missing(f"acl-plugin pretrain --out {self.run.path} ...", "Unfinished: to resume it, repeat")
            )
        return lines + self.accuracies()

    def accuracies(self) -> list[str]:
        """Return the table of clean and AutoAttack accuracy, with remarks."""
        e = self.evaluation
        if e is None:
            return [elements.missing(self.command)]
        attack = f"{tables.autoattack_name(e)}, {e['threat_model']} eps {e['eps']:.4g}, seed {e['seed']}"
        rows = [("clean", e["clean_accuracy"]), (attack, e["robust_accuracy"])]
        values = [[name, f"{100 * v:.2f} %", "{:.1f} to {:.1f} %".format(*wilson(v, e["n"]))] for name, v in rows]
        lines = elements.table(["", f"accuracy on {e['n']} test images", "95 % interval"], values)
        lines += self.stale(e, "The evaluation")
        lines += [f"<p class=missing>{html.escape(flag)}</p>" for flag in e["flags"]]
        verdicts = read_verdicts(self.run.verdicts_file, e["n"])
        return lines + (elements.text(tables.classes(verdicts, class_names(e))) if verdicts else [])

    def attacks(self) -> list[str]:
        lines = ["<h2>Attacks</h2>"]
        if self.evaluation is not None:
            lines += elements.figure(figures.accuracies(*_steps([self])), "Accuracy after each attack of AutoAttack")
        if self.suite is None:
            return [*lines, elements.missing(f"{self.command} --suite standard")]
        if not self.suite["complete"]:
            lines.append(elements.missing(f"{self.command} --suite standard", "Partial: to finish it, run"))
        lines += self.stale(self.suite, "The suite of attacks")
        if self.suite["curve"]:
            lines += elements.figure(figures.accuracy_by_eps({self.name: self.suite["curve"]}), "Accuracy against eps")
        return [*lines, *elements.text(tables.suite(self.suite))]

    def corruptions(self) -> list[str]:
        """Return the accuracy under corruptions, if it was measured: images of many datasets cannot be corrupted."""
        if self.corrupted is None:
            return []
        lines, command = ["<h2>Common corruptions</h2>"], f"{self.command} --suite corruptions"
        if not self.corrupted.get("complete", True):
            lines.append(elements.missing(command, "Partial: to finish it, run"))
        lines += self.stale(self.corrupted, "The accuracy under corruptions")
        return [*lines, *elements.text(tables.corruptions(self.corrupted))]

    def embedding(self) -> list[str]:
        lines, command = ["<h2>Features without a head</h2>"], f"{self.command} --suite embedding"
        if not self.run.embedding_file.is_file():
            return [*lines, elements.missing(command)]
        found = read_record(self.run.embedding_file)
        drawn = elements.figure(figures.embedding(found), "Distance of features from those of the image without attack")
        lines += drawn if found["complete"] else [elements.missing(command, "Partial: to finish it, run")]
        return [*lines, *elements.text(tables.embedding(found))]

    def pictures(self) -> list[str]:
        """Return some test images under PGD-20, and the features of more."""
        lines = ["<h2>Images and features</h2>"]
        if not self.run.classifier_file.is_file():
            return [*lines, elements.missing(f"acl-plugin probe {self.run.path}")]
        model = load_classifier(self.run.path)
        classes = model.spec.classes
        try:
            images = datasets.load(self.config.data).test_for(classes, self.config.evaluation.class_map).subset(MAPPED)
        except UsageError as error:
            return [*lines, f"<p class=missing>{html.escape(as_flags(str(error)))}</p>"]
        threat, x = ThreatModel(self.config.threat.norm, self.config.threat.eps), images.floats()
        with seeding.isolated_rng(mixed_seed(self.config.machine.seed, REPORT)):
            moved = InnerAttack(threat, threat.pgd, 20).classifier(model, x, images.labels)
        with torch.no_grad():
            f, f_adv = model.features(x), model.features(moved)
            before, after = model.head(f).argmax(1), model.head(f_adv).argmax(1)
        shown = subset_rows(images.labels, SHOWN)
        details = [
            (f"{classes[y]}: {classes[b]}", classes[a])
            for y, b, a in zip(images.labels[shown], before[shown], after[shown], strict=True)
        ]
        grid = figures.image_grid(x[shown], moved[shown], details, threat.eps if threat.norm == "Linf" else 0.1)
        axes = torch.linalg.svd(torch.cat([f, f_adv]) - f.mean(0), full_matrices=False).Vh[:2].T
        flat, flat_adv = ((z - f.mean(0)) @ axes for z in (f, f_adv))
        how = f"{threat.pgd} with 20 steps of eps / 4"
        caption = f"{how}. Above the images: label: prediction; above the adversarial ones: prediction"
        lines += elements.figure(grid, caption)
        return lines + elements.figure(
            figures.feature_map(flat, flat_adv, images.labels, classes), f"Features of {len(images)} test images"
        )

    def audit(self) -> list[str]:
        lines = ["<h2>Why it is robust, or not</h2>"]
        command = f"acl-plugin audit {self.run.path} --checkpoints all"
        if not self.run.audit_file.is_file():
            return [*lines, elements.missing(command)]
        found = read_audit(self.run.audit_file)
        if found is None:
            return [*lines, elements.missing(command, "Of an earlier version; repeat:")]
        if not found["complete"]:
            lines.append(elements.missing(command, "Partial: to finish it, run"))
        lines += elements.figure(
            figures.audit(found), "Both sides of each bound on the robust loss; estimates are no certificates"
        )
        lines += elements.figure(
            figures.audit_classes(found["rows"][-1]), "Terms by class at the last epoch; line: of all images"
        )
        if len(found["rows"]) > 1:
            lines += elements.figure(
                figures.audit_epochs(found["rows"]), "Tightness of the bounds by epoch; 1 is tight"
            )
        return [*lines, *elements.text(tables.audit(found))]

    def curves(self) -> list[str]:
        lines = ["<h2>Pretraining</h2>"]
        if not self.run.metrics_file.is_file():
            return [*lines, "<p class=missing>no metrics.csv: imported, transferred, or not begun</p>"]
        rows = read_metrics(self.run.metrics_file)
        names = [name for name in rows[0] if name not in ("epoch", "step")]
        epochs = [int(row["epoch"] or 0) for row in rows]
        terms = {name: [row[name] for row in rows] for name in names}
        return lines + elements.figure(figures.losses(epochs, terms), "Each term by epoch")

    def settings(self) -> list[str]:
        values = [[configuration.option_name(k), str(v)] for k, v in self.config.options().items()]
        kept = self.run.environment_file
        environment = read_record(kept) if kept.is_file() else {}
        versions = [[k, str(v)] for k, v in environment.items() if k != "packages"]
        versions += [[k, str(v)] for k, v in environment.get("packages", {}).items()]
        return [
            "<h2>Settings</h2>",
            "<details><summary>Every option</summary>",
            *elements.table(["option", "value"], values),
            "</details><details><summary>Versions and device</summary>",
            *elements.table(["", ""], versions),
            "</details>",
        ]


class _Evaluation(_Run):
    """Sections of a folder that contains an evaluation of the user's own model, but no run."""

    def __init__(self, run: RunDir, command: str = "", classifier: str | None = None) -> None:
        self.run, self.name, self.classifier = run, str(run.path), classifier
        found = [_record(file) for file in run.results()]
        self.evaluation, self.suite, self.corrupted, _ = found
        first = next((each for each in found if each is not None), None)
        if first is None:
            message = f"{run.path}: its evaluation has no result yet; repeat the command to finish it"
            raise UsageError(message, parameter="run", given=str(run.path), allowed="a folder with a result")
        if classifier is None:  # of a model that is no run
            self.other = "another model than the first result"
            self.classifier = next((each["weights_sha256"] for each in found[:3] if each is not None), None)
        attacked = next((each for each in found if each is not None and "eps" in each), None)
        data, self.threat, eps = first["dataset"] or "own images", "", ""
        if attacked is not None:
            self.threat, eps = (f"{attacked['threat_model']} {word}{attacked['eps']:.4g}" for word in ("", "eps "))
        self.of_what = (data, "", "")
        details = (data, eps, f"{first['n']} test images", f"seed {first['seed']}")
        self.about = ", ".join(each for each in details if each)
        named = f"{command} --name {run.path.name}" if command else ""
        self.command = named or f"acl-plugin evaluate --model ... --out {run.path}"

    def sections(self) -> list[str]:
        """Return the sections of an evaluation."""
        about = f"<p>{html.escape(self.about)}.</p>"
        attacked = self.evaluation is not None or self.suite is not None
        first = [*self.accuracies(), *self.attacks()] if attacked else []
        more = self.embedding() if self.run.embedding_file.is_file() else []
        return [about, *first, *self.corruptions(), *more]


def _record(file: Path) -> dict[str, Any] | None:
    return read_record(file) if file.is_file() else None


def _comparison(pages: Sequence[_Run]) -> list[str]:
    head = ["run", "data", "threat", "objective", "backbone", "clean", "AutoAttack", "95 % interval", "test images"]
    rows = []
    for page in pages:
        e = page.evaluation
        cells = ["", "", "", ""]
        if e is not None:
            within = "{:.1f} to {:.1f} %".format(*wilson(e["robust_accuracy"], e["n"]))
            cells = [f"{100 * e['clean_accuracy']:.2f} %", f"{100 * e['robust_accuracy']:.2f} %", within, str(e["n"])]
        threat = page.threat if e is None else f"{e['threat_model']} {e['eps']:.4g}"
        data, *made_by = page.of_what
        rows.append([page.name, data, threat, *made_by, *cells])
    lines = elements.table(head, rows)
    keys = ("images", "threat_model", "eps", "version")
    details = [[e[key] for key in keys] for page in pages if (e := page.evaluation) is not None]
    if any(each != details[0] for each in details):
        lines.append("<p class=missing>These runs were evaluated on different images, threat models or attacks.</p>")
    evaluated = [page for page in pages if page.evaluation is not None]
    if evaluated:
        lines += elements.figure(figures.accuracies(*_steps(evaluated)), "Accuracy after each attack of AutoAttack")
    curves = {page.name: page.suite["curve"] for page in pages if page.suite is not None and page.suite["curve"]}
    return lines + (elements.figure(figures.accuracy_by_eps(curves), "Accuracy against eps") if curves else [])


def _steps(pages: Sequence[_Run]) -> tuple[list[str], dict[str, list[float]]]:
    """Return the arguments of ``figures.accuracies`` for the evaluated runs."""
    found = {page.name: {"clean": e["clean_accuracy"], **after_attacks(e)} for page in pages if (e := page.evaluation)}
    steps = max(found.values(), key=len)
    return list(steps), {name: [after.get(step, math.nan) for step in steps] for name, after in found.items()}
