"""Export a complete RobustSSL board: an entry as JSON, rows of the leaderboard's tables, and the log of its scripts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from acl_plugin.config.published import labeled
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard import provenance
from acl_plugin.leaderboard.architectures import architecture
from acl_plugin.leaderboard.boards import Board, Cell, listed
from acl_plugin.leaderboard.cell_folders import Source, result_of, unfinished
from acl_plugin.registry import BOARDS, EXPORTERS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import write_atomic, write_json

NAME = re.compile(r"\w[\w.+-]{,99}", re.ASCII)
EPS = 8 / 255
NETWORKS = ("resnet18", "resnet34", "resnet50")
METRICS = ("robust", "standard", "corruption")
"""Accuracies of a cell, in the order of the means in the log of the leaderboard's scripts."""
OF_PROBE = "protocol probe_epochs probe_milestones probe_lr probe_batch_size probe_weight_decay probe_augment n seed"
"""Settings of a probe that an entry has; it has all that begin with ``probe_`` as well."""


@EXPORTERS.register("robustssl")
@exclusive
def export(
    run: RunDir,
    *,
    name: str | None = None,
    targets: str | Sequence[str] | None = None,
    lpaft: Literal["none", "dynacl", "air"] = "none",
    paper_url: str = "",
    paper_title: str = "",
    authors: str = "",
    venue: str = "Unpublished",
) -> Path:
    """Write RobustSSL's entry for a benchmarked run.

    ``RUN/robustssl/NAME`` gets ``entry.json``, ``README.md`` with line and rows of the leaderboard, and a log of
    each target in the form of its scripts. Accuracies are in percent.

    Args:
        run: run folder with a complete board.
        name: the method's name on the leaderboard; by default objective and backbone.
        targets: names of the target datasets of the entry, a sequence or text with commas; None for the leaderboard's.
        lpaft: LP-AFT before the probes.
        paper_url, paper_title, authors, venue: the paper of the result.

    Returns:
        The JSON file.

    Raises:
        UsageError: when the board is incomplete, naming the missing cells; or for an invalid name or an unknown target.
    """
    config = run.read_config()
    name = f"{config.objective.objective}_{config.encoder.backbone}" if name is None else name
    if not NAME.fullmatch(name):
        allowed = "up to 100 letters, digits, ., _, + and -, starting with a letter or digit"
        raise UsageError(f"`name` {name!r}: allowed are {allowed}", parameter="name", given=name, allowed=allowed)
    board: Board = BOARDS.get("robustssl")()
    source, data = Source.of(run), run.pretrained_on()
    cells = board.cells(data, listed(targets), lpaft=lpaft)
    _require_complete(source, board, cells)
    found = [_cell(source, board, cell) for cell in cells]
    paper = {"title": paper_title or name, "link": paper_url, "authors": authors, "venue": venue}
    entry = {
        "board": board.page,
        "name": name,
        "paper": paper,
        "method": config.objective.objective,
        "pretrained_on": data,
        "architecture": architecture(source.encoder.spec),
        "backbone": source.encoder.spec.to_dict(),
        "encoder": {"file": run.encoder_file.name, "weights_sha256": source.sha256},
        "pretraining": provenance.pretraining(run),
        "cells": found,
        "means": {target: _means(found, target) for target in dict.fromkeys(each["target"] for each in found)},
        "not_for_the_leaderboard": _reasons(source, board, cells, found),
    }
    folder = run.robustssl_folder / name
    folder.mkdir(parents=True, exist_ok=True)
    for target in {cell.target.data for cell in cells}:
        write_atomic(folder / f"log_{target}.txt", "\n".join([*_log(found, target), ""]).encode())
    write_atomic(folder / "README.md", "\n".join([*_page(entry, board, cells), ""]).encode())
    write_json(folder / "entry.json", entry)
    return folder / "entry.json"


def _require_complete(source: Source, board: Board, cells: Sequence[Cell]) -> None:
    """Refuse a board with cells that are missing or have no complete result.

    Raises:
        UsageError: naming the cells and what they lack.
    """
    lacking = {str(cell): stages for cell in cells if (stages := unfinished(source, cell, board.name))}
    if lacking:
        shown = ", ".join(f"{cell} ({', '.join(stages)})" for cell, stages in lacking.items())
        message = (
            f"{source.run.path}: {len(lacking)} of {len(cells)} cells of board {board.name} are missing: {shown}; "
        )
        message += f"run: acl-plugin benchmark {source.run.path} --board {board.name}"
        raise UsageError(message, parameter="run", given=str(source.run.path), allowed="a run with a complete board")


def _cell(source: Source, board: Board, cell: Cell) -> dict[str, Any]:
    """Return the part of an entry that is a cell."""
    folder = cell.folder(source.run, board.name)
    model = load_classifier(folder.path)
    digest = weights_hash(model)
    results = {name: result_of(folder, name, digest) for name in cell.target.evaluations}
    evaluation, corruptions = results["autoattack"], results.get("corruptions")
    assert evaluation is not None
    probed, environment = read_record(folder.probe_file), read_record(folder.environment_file)
    settings = {k: v for k, v in probed.items() if k in OF_PROBE.split() or k.startswith("probe_")}
    return {
        "target": cell.target.data,
        "protocol": cell.title,
        "robust": _percent(evaluation["robust_accuracy"]),
        "standard": _percent(evaluation["clean_accuracy"]),
        "corruption": None if corruptions is None else _percent(corruptions["mean"]),
        "corruption_by_severity": None if corruptions is None else _by_severity(corruptions["accuracy"]),
        "corruptions": None if corruptions is None else corruptions["source"],
        "n": evaluation["n"],
        "threat_model": evaluation["threat_model"],
        "eps": evaluation["eps"],
        "autoattack": evaluation["version"],
        "seed": evaluation["seed"],
        "flags": evaluation["flags"],
        "probe": settings,
        "image_size": list(model.spec.shape[1:]),
        "checkpoint": str(folder.classifier_file.relative_to(source.run.path)),
        "weights_sha256": digest,
        "versions": environment.get("packages", {}),
    }


def _by_severity(accuracy: dict[str, list[float]]) -> list[float]:
    return [_percent(sum(values) / len(values)) for values in zip(*accuracy.values(), strict=True)]


def _means(found: Sequence[dict[str, Any]], target: str) -> dict[str, float | None]:
    """Return the means over the protocols that the scripts of the leaderboard log."""
    cells = [each for each in found if each["target"] == target]
    values = {metric: [cell[metric] for cell in cells] for metric in METRICS}
    return {k: None if None in each else round(sum(each) / len(each), 2) for k, each in values.items()}


def _reasons(source: Source, board: Board, cells: Sequence[Cell], found: Sequence[dict[str, Any]]) -> list[str]:
    """Return why the entry is no result that the leaderboard compares with its own."""
    reasons, size = [], list(source.encoder.spec.shape[1:])
    own = board.targets[labeled(source.run.pretrained_on())].size
    if size != [own, own]:
        reasons.append(f"images of {size[0]} x {size[1]} pixels, there {own} x {own}")
    if source.encoder.spec.backbone.split(".")[0] not in NETWORKS or source.encoder.spec.kwargs:
        reasons.append(f"the network is {architecture(source.encoder.spec)}, there ResNet-18, 34 or 50")
    for cell, values in zip(cells, found, strict=True):
        of = cell.target
        if not of.n:
            reasons.append(f"{of.data} is not on the leaderboard")
            continue
        limit = cell.folder(source.run, board.name).read_config().data.limit_train
        if limit is not None:
            reasons.append(f"{cell}: probed on {values['probe']['n']} training images, there all")
        if values["n"] < of.n:
            reasons.append(f"{cell}: {values['n']} of {of.n} test images")
        if values["threat_model"] != board.norm or abs(values["eps"] - EPS) > 1e-9:
            reasons.append(f"{cell}: {values['threat_model']} eps {values['eps']:.4g}, there {board.norm} eps 8/255")
        if (values["corruptions"] or "").startswith("generated"):
            reasons.append(f"{cell}: corruptions {values['corruptions']}, there the published files")
    return list(dict.fromkeys(reasons))


def _log(found: Sequence[dict[str, Any]], target: str) -> list[str]:
    """Return the lines of the results on a target as the leaderboard's scripts log them."""
    lines = []
    for cell in (each for each in found if each["target"] == target):
        mode = cell["protocol"]
        lines += [f"{mode} standard acc: {cell['standard']:.2f}", f"{mode} robust acc: {cell['robust']:.2f}"]
        if cell["corruption"] is not None:
            lines.append(f"{mode} mean corruption acc: {cell['corruption']:.2f}")
            by_severity = enumerate(cell["corruption_by_severity"], 1)
            lines += [f"{mode} corruption severity-{level} acc: {value:.2f}" for level, value in by_severity]
    means = _means(found, target)
    return lines + [f"mean {metric} accuracy: {means[metric]:.2f}" for metric in METRICS if means[metric] is not None]


def _page(entry: dict[str, Any], board: Board, cells: Sequence[Cell]) -> list[str]:
    """Return the method's line of the README, and its row in each table of the leaderboard."""
    paper, own = entry["paper"], entry["pretrained_on"]
    linked = f"[{paper['title']}]({paper['link']})" if paper["link"] else paper["title"]
    cited = ", ".join(part for part in (paper["authors"], paper["venue"]) if part)
    method = f"{entry['name']} ({cited})"
    lines = [f"- [{method}]({paper['link']})" if paper["link"] else f"- {method}"]
    titles = {name: target.title for name, target in board.targets.items()}
    for cell, values in zip(cells, entry["cells"], strict=True):
        to = values["target"]
        to_own = to == labeled(own)
        task = f"Self-task on {titles[to]}" if to_own else f"From {titles.get(own, own)} to {titles[to]}"
        accuracies = ("-" if values[k] is None else f"{values[k]:.2f}" for k in ("robust", "corruption", "standard"))
        lines += [
            "",
            f"{task}, {cell.title}, vanilla fine-tuning:",
            "",
            "| Paper | Venue | Robust Accuracy | Corruption Accuracy | Standard Accuracy |",
            "|---|---|---|---|---|",
            f"| {linked} | {paper['venue']} | {' | '.join(accuracies)} |",
        ]
    return lines + [f"\nNot for the leaderboard: {reason}." for reason in entry["not_for_the_leaderboard"]]


def _percent(share: float) -> float:
    return round(100 * share, 2)
