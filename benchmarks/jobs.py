"""Do the runs of a comparison, several in parallel."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from acl_plugin import pipeline
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingStopped
from acl_plugin.evaluation.run_folder import evaluate_suite
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.transfer import transfer
from acl_plugin.runtime import memory
from acl_plugin.runtime.device import training_device
from acl_plugin.runtime.files import read_json, write_json
from acl_plugin.training.build import build
from benchmarks.rows import Row

STOPPED = "stopped.json"
"""File of a run whose pretraining stopped."""
PGD = "PGD-20"
"""Attack of the suite that budgeted rows have beside AutoAttack."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        row, seed: row of the table and seed.
        config: configuration of the folder ``out``.
        source: run that provides the encoder, with its own configuration; None to pretrain.
    """

    row: Row
    seed: int
    config: RunConfig
    out: Path
    source: "Job | None" = None

    @property
    def hash(self) -> str:
        """Hash of the row's configuration."""
        return self.out.parent.name

    @property
    def stopped(self) -> dict[str, str]:
        """Why the pretraining stopped, as ``stopped``; empty unless it did."""
        return dict(read_json(self.out / STOPPED)) if (self.out / STOPPED).is_file() else {}

    def stop(self, error: TrainingStopped) -> None:
        """Record that the pretraining stopped: a collapse is a result."""
        write_json(self.out / STOPPED, {"stopped": str(error)})
        print(f"{self.row.label}, seed {self.seed}: stopped: {error}", flush=True)


def do_all(what: Callable[[Job], None], jobs: Sequence[Job], at_a_time: int) -> None:
    """Call ``what`` on the runs, several in parallel, with equal shares of the machine's threads."""
    jobs = list({each.out: each for each in jobs}.values())
    if at_a_time == 1:
        for each in jobs:
            what(each)
        return
    threads = max(1, torch.get_num_threads() // at_a_time)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_a_time, spawn, _begin_worker, (threads,)) as pool:
        for _ in pool.map(what, jobs):
            pass


def _begin_worker(threads: int) -> None:
    """End this worker when its parent ends, even if it is killed; the next start resumes the worker's run."""
    torch.set_num_threads(threads)
    memory.keep_freed()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def do(each: Job) -> None:
    """Start or resume one run, unless it is known to stop."""
    if each.stopped:
        return
    out = RunDir(each.out)
    try:
        if each.source is not None:
            _encoder(each.source)
            transfer(RunDir(each.source.out), out, each.config)
        elif each.row.untrained:
            _encoder(each)
        result = pipeline.run(each.config, each.out, training_device("auto"))
        if each.row.budgeted:
            evaluate_suite(out, each.config, attacks=[PGD])
    except TrainingStopped as error:
        each.stop(error)
        return
    accuracies = f"clean {result['clean_accuracy']:.3f}, AutoAttack {result['robust_accuracy']:.3f}"
    print(f"{each.row.label}, seed {each.seed}: {accuracies}", flush=True)


def _encoder(each: Job) -> None:
    """Pretrain, or store the initial encoder."""
    run = RunDir(each.out)
    if not each.row.untrained:
        pipeline.pretrain(each.config, each.out)
    elif not run.encoder_file.is_file():
        module = build(each.config, datasets.load(each.config.data))
        run.start(each.config)
        write_json(run.pretraining_file, {"epochs": 0, "seconds": 0.0, "resumed": False})
        module.write_encoder(run)
