"""Run folder: its files, and methods to check and read them. Every file is written atomically.

RUN/config.yaml          resolved configuration
RUN/images.json          fingerprints of the training and test images, and the rows selected by a limit
RUN/environment.json     versions, device, threads, git commit
RUN/own_encoder.json     what describes an encoder of the user's own at the first start
RUN/metrics.csv          loss terms by epoch; also as TensorBoard events in RUN/tensorboard
RUN/checkpoints/last.ckpt  checkpoint to resume pretraining from; before.ckpt is the previous one
RUN/checkpoints/epoch-*/  encoder after some epochs, to be audited: a folder with an encoder.pt and so on each
RUN/encoder.pt           pretrained encoder: one norm bank, timm's keys; benign_encoder.pt is the bank for benign
                         images, if it is another one; projector.pt is the projector
RUN/classifier.pt        encoder and head; probe.json holds the settings of its training
RUN/probing/             state that an unfinished probe resumes from
RUN/evaluation.jsonl     one line per test image; evaluation.json is the summary, evaluation_key.json the settings;
                         an interrupted evaluation resumes from evaluation_chunks/
RUN/adversarial/         adversarial examples that fool the classifier, by chunk and attack
RUN/suite.json           accuracy under each standard attack, and accuracy against eps
RUN/corruptions.json     accuracy under common corruptions
RUN/embedding.json       how far adversarial examples move the features of the encoder
RUN/audit.json           all terms of the bounds; audit.svg is its figure
RUN/report.html          all results on one page
RUN/evaluations/NAME/    the same files of further evaluations, by `acl-plugin evaluate --name NAME`
RUN/boards/BOARD/TARGET/PROTOCOL/  a run folder for each cell of `acl-plugin benchmark --board BOARD`
RUN/robustbench/         output of `acl-plugin export`; RUN/robustssl/, RUN/timm/, RUN/hub/ and RUN/torch/ of other
                         formats
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from acl_plugin import config as configuration
from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError
from acl_plugin.runs.clearing import clear
from acl_plugin.runs.environment import environment
from acl_plugin.runs.recorded_images import recorded_images
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import refuse
from acl_plugin.runtime.files import damaged, writable, write_atomic, write_json
from acl_plugin.runtime.paths import user_path
from acl_plugin.validation import check_value

if TYPE_CHECKING:  # PyTorch takes seconds, and commands read configurations without it
    import torch

    from acl_plugin.data.images import DataSet


class RunDir(os.PathLike[str]):
    """Run folder at a path. It stands for that path wherever one is taken."""

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self.path = user_path(path, "run")
        self.config_file = self.path / "config.yaml"
        self.environment_file = self.path / "environment.json"
        self.images_file = self.path / "images.json"
        self.checkpoint_file = self.path / "checkpoints" / "last.ckpt"
        self.earlier_checkpoint_file = self.path / "checkpoints" / "before.ckpt"
        self.metrics_file = self.path / "metrics.csv"
        self.own_encoder_file = self.path / "own_encoder.json"
        self.encoder_file = self.path / "encoder.pt"
        self.benign_encoder_file = self.path / "benign_encoder.pt"
        self.projector_file = self.path / "projector.pt"
        self.discriminator_file = self.path / "discriminator.pt"
        self.pretraining_file = self.path / "pretraining.json"
        self.classifier_file = self.path / "classifier.pt"
        self.probe_file = self.path / "probe.json"
        self.probing_folder = self.path / "probing"
        self.evaluation_file = self.path / "evaluation.json"
        self.evaluation_key_file = self.path / "evaluation_key.json"
        self.verdicts_file = self.path / "evaluation.jsonl"
        self.chunks_folder = self.path / "evaluation_chunks"
        self.adversarial_folder = self.path / "adversarial"
        self.suite_file = self.path / "suite.json"
        self.corruptions_file = self.path / "corruptions.json"
        self.embedding_file = self.path / "embedding.json"
        self.evaluations_folder = self.path / "evaluations"
        self.audit_file = self.path / "audit.json"
        self.audit_figure_file = self.path / "audit.svg"
        self.report_file = self.path / "report.html"
        self.boards_folder = self.path / "boards"
        self.robustbench_folder = self.path / "robustbench"
        self.robustssl_folder = self.path / "robustssl"
        self.timm_folder = self.path / "timm"
        self.hub_folder = self.path / "hub"
        self.torch_folder = self.path / "torch"

    def __fspath__(self) -> str:
        return str(self.path)

    def evaluation_chunk(self, start: int) -> Path:
        """Return the file with the progress of the attacks on the test images from position ``start``."""
        return self.chunks_folder / f"{start:06}.json"

    def snapshot(self, epochs: int) -> "RunDir":
        """Return the folder of the encoder after ``epochs`` epochs."""
        return RunDir(self.path / "checkpoints" / f"epoch-{epochs:05d}")

    def snapshots(self) -> list["RunDir"]:
        """Return the folders of the saved encoders, in the order of epochs."""
        kept = sorted((self.path / "checkpoints").glob("epoch-*"))
        return [run for run in map(RunDir, kept) if run.encoder_file.is_file()]

    def evaluation(self, name: str | None) -> "RunDir":
        """Return the folder of the results of a named evaluation; None for the run's own folder.

        Raises:
            UsageError: for a name that is no file name of letters, digits, ., _ and -.
        """
        if name is None:
            return self
        if not re.fullmatch(r"\w[\w.-]{,99}", name, re.ASCII):
            allowed = "up to 100 letters, digits, ., _ and -, starting with a letter or digit"
            raise UsageError(f"`name` {name!r}: allowed are {allowed}", parameter="name", given=name, allowed=allowed)
        return RunDir(self.evaluations_folder / name)

    def evaluations(self) -> list["RunDir"]:
        """Return the folders of the named evaluations that have a result, by name."""
        named = map(RunDir, sorted(self.evaluations_folder.glob("*")))
        return [each for each in named if any(file.is_file() for file in each.results())]

    def results(self) -> tuple[Path, ...]:
        """Return the files of the results of all evaluations, which may be missing."""
        return self.evaluation_file, self.suite_file, self.corruptions_file, self.embedding_file

    def require_folder(self) -> None:
        """Check that the folder exists.

        Raises:
            UsageError: when it does not.
        """
        if not self.path.is_dir():
            raise UsageError(
                f"{self.path}: no such run folder", parameter="run", given=str(self.path), allowed="a run folder"
            )

    def require(self, file: Path, stage: str) -> Path:
        """Return ``file``, which is written by the command ``stage``.

        Raises:
            UsageError: when it is missing, with the command to run first.
        """
        self.require_folder()
        if not file.is_file():
            message = f"{file} is missing; run first: acl-plugin {stage}"
            raise UsageError(message, parameter="run", given=str(self.path), allowed=f"a run folder with {file.name}")
        return file

    def read_config(self) -> RunConfig:
        """Return the configuration of the run.

        Raises:
            UsageError: when there is none or it cannot be read.
        """
        import yaml

        path = self.require(self.config_file, f"pretrain --out {self.path}")
        try:
            text, fast = path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # which libyaml has
            return configuration.from_dict(yaml.load(text, fast))
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as error:
            raise damaged(path, f"is not a configuration: {' '.join(str(error).split())}") from error

    def pretrained_on(self) -> str:
        """Return the dataset of the pretraining, which a transferred run has from its source."""
        record = read_record(self.pretraining_file) if self.pretraining_file.is_file() else {}
        return str(record.get("transferred_from", self.read_config().data.data))

    def resolved(
        self, config: RunConfig | None, device: "torch.device | str | None"
    ) -> "tuple[RunConfig, torch.device]":
        """Return configuration and device of a stage; None stands for those of the run.

        Raises:
            UsageError: for an invalid configuration, or a device that this machine lacks.
        """
        from acl_plugin.runtime.device import require_device, training_device

        if config is None:
            config = self.read_config()
        configuration.check(config)
        return config, training_device(config.machine.accelerator) if device is None else require_device(device)

    def check_config(self, config: RunConfig, overwrite: bool | None = None, *, growing: bool = False) -> None:
        """Reject a folder that does not belong to this run; another run is accepted with ``overwrite``.

        Args:
            config: configuration of the run.
            overwrite: whether the caller replaces another run; None if it cannot.
            growing: accept a run of fewer epochs.

        Raises:
            UsageError: when it contains another configuration or other files.
        """
        check_value("overwrite", overwrite, bool | None)
        if self.path.exists() and not self.path.is_dir():
            message = f"{self.path} is a file; `out` is a folder"
            raise UsageError(message, parameter="out", given=str(self.path), allowed="a folder")
        if self.config_file.is_file():
            if overwrite and not self._is_of_a_run():
                message = f"{self.config_file} is not of a run, so that nothing is replaced; choose another `out`"
                raise UsageError(message, parameter="out", given=str(self.path), allowed="a new folder, or a run's")
            if not overwrite:
                differences = configuration.differences(config, self.read_config(), growing=growing)
                refuse(self.path, differences, "a run", replaceable=overwrite is not None)
        elif self.path.is_dir() and any(not _is_log(file) for file in self.path.iterdir()):
            raise UsageError(
                f"{self.path} is not empty and not a run folder; choose another `out`",
                parameter="out", given=str(self.path), allowed="a new or empty folder (log files may be there)",
            )  # fmt: skip

    def _is_of_a_run(self) -> bool:
        """Return whether the configuration is of a run, and not a file of the same name of something else."""
        if self.environment_file.is_file():
            return True
        try:
            return self.config_file.read_bytes() == _text(self.read_config())
        except UsageError:
            return False

    def check_images(self, data: "DataSet", *, pretraining: bool = False) -> None:
        """Reject training images that differ from those that the run started with.

        Args:
            data: dataset of the run.
            pretraining: check the unlabeled images too.

        Raises:
            UsageError: with the difference.
        """
        before = recorded_images(self.images_file)
        remedy = f"restore them, or choose another folder than {self.path}"
        data.train.fingerprint(data.classes).require(before.get("train"), f"the training images of {data.name}", remedy)
        if pretraining and data.unlabeled is not None:
            own = data.pretraining.fingerprint(data.classes)
            own.require(before.get("pretraining"), f"labeled and unlabeled images of {data.name}", remedy)

    def record_images(self, data: "DataSet", *, pretraining: bool = False) -> None:
        """Record the images of the run, after ``check_images``.

        Raises:
            UsageError: see ``check_images``.
        """
        self.check_images(data, pretraining=pretraining)
        found = data.fingerprints()
        if pretraining and data.unlabeled is not None:
            found["pretraining"] = data.pretraining.fingerprint(data.classes).to_dict()
        write_json(self.images_file, found)

    def clear(self) -> None:
        """Remove all files of the run, from the results to the configuration, which marks a run folder.

        Other files stay, see ``clearing``.
        """
        own = (path for path in reversed(vars(self).values()) if path != self.path)
        clear(self.path, [*self.path.glob("after-*-epochs"), *own])

    def record_config(self, config: RunConfig) -> None:
        """Write the configuration, unless it is there: options of where and how may change when a run resumes."""
        text = _text(config)
        if not self.config_file.is_file() or self.config_file.read_bytes() != text:
            write_atomic(self.config_file, text)

    def start(self, config: RunConfig, overwrite: bool | None = None) -> None:
        """Create the folder, or clear that of another run, and record configuration and environment."""
        self.check_config(config, overwrite, growing=True)
        with writable(self.path):
            if overwrite:
                self.clear()
            self.path.mkdir(parents=True, exist_ok=True)
            self.record_config(config)  # first, as it marks a run folder
            self.checkpoint_file.parent.mkdir(exist_ok=True)
            write_json(self.environment_file, environment())


def _text(config: RunConfig) -> bytes:
    """Return the content of the file of a configuration."""
    import yaml

    return str(yaml.safe_dump(configuration.to_dict(config), sort_keys=False)).encode()


def _is_log(path: Path) -> bool:
    """Return whether a file may exist in the folder before the run: a hidden file, or one that output is written to."""
    if path.name.startswith(".") or not path.is_file():
        return path.name.startswith(".")
    streams = [os.fstat(number) for number in (1, 2) if _is_open(number)]
    own = any(os.path.samestat(path.stat(), stream) for stream in streams)
    return own or path.suffix in (".log", ".out", ".err") or path.name == "log.txt"


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
