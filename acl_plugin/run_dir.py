"""What a run leaves on disk, and how it is read again. Every file appears whole or not at all.

RUN/config.yaml          the resolved configuration
RUN/images.json          fingerprints of the training and test images, and the rows of them that a limit has left
RUN/environment.json     versions, device, threads, git commit
RUN/metrics.csv          loss terms by epoch; the same as TensorBoard events in RUN/tensorboard
RUN/checkpoints/last.ckpt  to resume pretraining; before.ckpt is the one before it
RUN/checkpoints/epoch-*/  the encoder after some epochs, to be audited: a folder with an encoder.pt and so on each
RUN/encoder.pt           the pretrained encoder: one norm bank, timm's keys; benign_encoder.pt is the bank for benign
                         images, where it is another one; projector.pt the projector
RUN/classifier.pt        encoder and head; probe.json tells how the head was trained
RUN/probing/             what a later start of an unfinished probe goes on from
RUN/evaluation.jsonl     one line per test image; evaluation.json sums them up, evaluation_key.json tells of what;
                         evaluation_chunks/ is what a later start goes on from
RUN/adversarial/         the images that broke the classifier, by chunk and attack
RUN/suite.json           the standard attacks one by one, and accuracy against eps
RUN/corruptions.json     accuracy under common corruptions
RUN/audit.json           every term of the bounds; audit.svg is its figure
RUN/report.html          all of it on one page
RUN/robustbench/         what `acl-plugin export` wrote
"""

import hashlib
import io
import json
import os
import platform
import subprocess
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from acl_plugin import config as configuration
from acl_plugin import randomness
from acl_plugin.backbones import Classifier, Encoder, ModelSpec
from acl_plugin.config import RunConfig
from acl_plugin.data import DataSet
from acl_plugin.errors import UsageError
from acl_plugin.paths import user_path

Module = TypeVar("Module", bound=nn.Module)
PACKAGES = (
    "acl_plugin torch torchvision timm torchattacks robustbench autoattack pyautoattack lightning kornia "
    "scikit-learn numpy jsonargparse"
).split()


class RunDir:
    """A run folder by its path."""

    def __init__(self, path: Path | str) -> None:
        self.path = user_path(path, "run")

    config = property(lambda self: self.path / "config.yaml")
    images = property(lambda self: self.path / "images.json")
    checkpoint = property(lambda self: self.path / "checkpoints" / "last.ckpt")
    checkpoint_before = property(lambda self: self.path / "checkpoints" / "before.ckpt")
    metrics = property(lambda self: self.path / "metrics.csv")
    encoder = property(lambda self: self.path / "encoder.pt")
    benign_encoder = property(lambda self: self.path / "benign_encoder.pt")
    projector = property(lambda self: self.path / "projector.pt")
    pretraining = property(lambda self: self.path / "pretraining.json")
    classifier = property(lambda self: self.path / "classifier.pt")
    probe = property(lambda self: self.path / "probe.json")
    probing = property(lambda self: self.path / "probing")
    evaluation = property(lambda self: self.path / "evaluation.json")
    evaluation_key = property(lambda self: self.path / "evaluation_key.json")
    evaluation_lines = property(lambda self: self.path / "evaluation.jsonl")
    evaluation_chunks = property(lambda self: self.path / "evaluation_chunks")
    adversarial = property(lambda self: self.path / "adversarial")
    suite = property(lambda self: self.path / "suite.json")
    corruptions = property(lambda self: self.path / "corruptions.json")
    audit = property(lambda self: self.path / "audit.json")
    audit_figure = property(lambda self: self.path / "audit.svg")
    report = property(lambda self: self.path / "report.html")
    robustbench = property(lambda self: self.path / "robustbench")

    def evaluation_chunk(self, start: int) -> Path:
        """How far the attacks on the test images from position ``start`` have come."""
        return self.path / "evaluation_chunks" / f"{start:06}.json"

    def snapshot(self, epochs: int) -> "RunDir":
        """Where the encoder after ``epochs`` epochs is kept."""
        return RunDir(self.path / "checkpoints" / f"epoch-{epochs:05d}")

    def snapshots(self) -> list["RunDir"]:
        """The encoders that were kept, in the order of the epochs."""
        kept = sorted((self.path / "checkpoints").glob("epoch-*"))
        return [run for run in map(RunDir, kept) if run.encoder.is_file()]

    def require(self, file: Path, stage: str) -> Path:
        """``file``, which the command ``stage`` writes.

        Raises:
            UsageError: when it is missing, with the command to run first.
        """
        if not self.path.is_dir():
            raise UsageError(
                f"{self.path}: no such run folder", parameter="run", given=str(self.path), allowed="a run folder"
            )
        if not file.is_file():
            message = f"{file} is missing; run first: acl-plugin {stage}"
            raise UsageError(message, parameter="run", given=str(self.path), allowed=f"a run folder with {file.name}")
        return file

    def read_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            UsageError: when there is none or it cannot be read.
        """
        import yaml

        path = self.require(self.config, f"pretrain --out {self.path}")
        try:
            return configuration.from_dict(yaml.safe_load(path.read_text()))
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
            raise _damaged(path, f"is not a configuration: {' '.join(str(error).split())}") from error

    def check_config(self, config: RunConfig) -> None:
        """Refuse a folder that is not this run's.

        Raises:
            UsageError: when it holds another configuration or other files.
        """
        if self.path.exists() and not self.path.is_dir():
            message = f"{self.path} is a file; `out` is a folder"
            raise UsageError(message, parameter="out", given=str(self.path), allowed="a folder")
        if self.config.is_file():
            other = configuration.differences(config, self.read_config())
            if other:
                raise UsageError(
                    f"{self.path} holds a run of another configuration ({'; '.join(other)}); choose another `out`",
                    parameter="out", given=str(self.path), allowed="the folder of the same run, or a new one",
                )  # fmt: skip
        elif self.path.is_dir() and any(not _is_log(file) for file in self.path.iterdir()):
            raise UsageError(
                f"{self.path} is not empty and not a run folder; choose another `out`",
                parameter="out", given=str(self.path), allowed="a new or empty folder (log files may be there)",
            )  # fmt: skip

    def check_images(self, data: DataSet) -> None:
        """Refuse training images that are not those that the run was begun with.

        Raises:
            UsageError: naming what differs.
        """
        before = read_json(self.images) if self.images.is_file() else {}
        if not isinstance(before, dict):
            raise UsageError(f"{self.images} is damaged; delete it", parameter="run", given=str(self.path))
        remedy = f"restore them, or choose another folder than {self.path}"
        data.train.fingerprint(data.classes).require(before.get("train"), f"the training images of {data.name}", remedy)

    def record_images(self, data: DataSet) -> None:
        """Write down which images the run is about, if they are those of before.

        Raises:
            UsageError: as ``check_images``.
        """
        self.check_images(data)
        write_json(self.images, data.fingerprints())

    def start(self, config: RunConfig) -> None:
        """Make the folder, and write down configuration and environment."""
        import yaml

        self.check_config(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(configuration.to_dict(config), sort_keys=False)
            write_atomic(self.config, text.encode())  # first, as it tells what the folder is
            self.checkpoint.parent.mkdir(exist_ok=True)
            write_json(self.path / "environment.json", environment())
        except OSError as error:
            message = f"{self.path} cannot be written: {error.strerror}"
            raise UsageError(
                message, parameter="out", given=str(self.path), allowed="a folder that can be written"
            ) from error


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} {what}", parameter="run", given=str(path), allowed="a file as it was written")


def _is_log(path: Path) -> bool:
    """Return whether a file may lie in a run's folder before the run does: hidden, or what output is written to."""
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


def load_classifier(run: Path | str) -> Classifier:
    """The probed model of a run folder.

    It is in eval mode and takes images of the data set's own shape, (B, C, H, W) in [0, 1]; whatever resizing or
    normalising it needs is inside.

    Args:
        run: a folder in which ``acl-plugin run`` or ``acl-plugin probe`` has finished.

    Raises:
        UsageError: when the folder or its classifier is missing or damaged.
    """
    folder = RunDir(run)
    spec, weights = read_model(folder.require(folder.classifier, f"probe {folder.path}"))
    with randomness.private(0):
        model = Classifier(spec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _damaged(folder.classifier, f"is damaged: its weights are not those of {spec.backbone}") from error
    return contiguous(model.eval())


def load_encoder(run: Path | str, *, benign: bool = False) -> Encoder:
    """The pretrained encoder of a run folder, with its projector, as a plain network with one norm bank.

    It is in eval mode; ``encoder.features(images)`` maps (B, C, H, W) in [0, 1] to (B, D).

    Args:
        run: a folder in which ``acl-plugin pretrain``, ``run`` or ``import`` has finished.
        benign: the norm bank for benign images, where it is another one than for adversarial images.

    Raises:
        UsageError: when the folder or its encoder is missing or damaged.
    """
    folder = RunDir(run)
    path = folder.require(folder.encoder, f"pretrain --out {folder.path}")
    spec, weights = read_model(folder.benign_encoder if benign and folder.benign_encoder.is_file() else path)
    kind, projector = read_projector(folder)
    with randomness.private(0):
        encoder = Encoder(spec, projector=kind)
    try:
        encoder.backbone.load_state_dict(weights)
        encoder.projector.load_state_dict(projector)
    except RuntimeError as error:
        raise _damaged(path, f"is damaged: its weights are not those of {spec.backbone}") from error
    return contiguous(encoder.eval())


def contiguous(model: Module) -> Module:
    """Return a model with weights in the usual memory format, as attacks of other libraries take gradients by view."""
    return model.to(memory_format=torch.contiguous_format)


def write_model(path: Path, spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    """Weights, and all that rebuilds the model they are of."""
    write_atomic(path, torch_bytes({"spec": spec.to_dict(), "weights": dict(weights)}))


def read_model(path: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """What ``write_model`` wrote; nothing in the file is executed.

    Raises:
        UsageError: when it is damaged or something else.
    """
    try:
        content = read_intact(path)
        return ModelSpec.from_dict(content["spec"]), content["weights"]
    except Exception as error:  # the unpickler raises all kinds
        raise _damaged(path, f"is damaged or no model of acl_plugin: {type(error).__name__}") from error


def write_encoder(
    run: RunDir,
    spec: ModelSpec,
    adversarial: Mapping[str, Tensor],
    benign: Mapping[str, Tensor] | None = None,
    projector: tuple[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """What ``load_encoder`` reads; ``encoder.pt`` comes last, as it says that the others are there.

    Args:
        adversarial, benign: weights of the norm bank for adversarial images, and for benign ones if it is another.
        projector: its name and weights.
    """
    if projector is not None:
        write_projector(run, *projector)
    if benign is not None:
        write_model(run.benign_encoder, spec, benign)
    write_model(run.encoder, spec, adversarial)


def write_projector(run: RunDir, kind: str, weights: Mapping[str, Tensor]) -> None:
    """A projector's name (see ``projectors.PROJECTORS``) and weights."""
    write_atomic(run.projector, torch_bytes({"projector": kind, "weights": dict(weights)}))


def read_projector(run: RunDir) -> tuple[str, dict[str, Tensor]]:
    """What ``write_projector`` wrote; ``identity`` for a run without a projector.

    Raises:
        UsageError: when the file is damaged or something else.
    """
    if not run.projector.is_file():
        return "identity", {}
    try:
        content = read_intact(run.projector)
        return content["projector"], content["weights"]
    except Exception as error:  # the unpickler raises all kinds
        raise _damaged(run.projector, f"is damaged or no projector: {type(error).__name__}") from error


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and bytes of a model's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def intact(path: Path) -> bool:
    """Whether every part of a file that ``torch.save`` wrote has the checksum that was written with it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def read_intact(path: Path) -> Any:
    """What ``torch.save`` wrote; nothing in the file is executed.

    Raises:
        ValueError: when a byte has changed since.
    """
    if not intact(path):
        raise ValueError("a checksum is not right")
    return torch.load(path, map_location="cpu", weights_only=True)


def torch_bytes(value: Any) -> bytes:
    """What ``torch.save`` writes of ``value``."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is seen whole or not at all, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: when it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise _damaged(path, f"is damaged: {error}") from error


def environment() -> dict[str, Any]:
    """Versions, device and threads of this process, and the git commit of this package if it is a checkout."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    source = Path(__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(source), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
