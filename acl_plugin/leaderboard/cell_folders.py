"""Configure, check and read the run folders of a board's cells."""

from dataclasses import dataclass
from typing import Any

from acl_plugin import config as configuration
from acl_plugin.config import RunConfig, check
from acl_plugin.config.published_probes import published_probe
from acl_plugin.evaluation.corruptions import NAMES
from acl_plugin.leaderboard.boards import Board, Cell
from acl_plugin.models.encoder import Encoder
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked
from acl_plugin.runs.models import load_classifier, load_encoder, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import refuse
from acl_plugin.runs.transfer import has_encoder, transferred

RESULTS = {"autoattack": "evaluation_file", "corruptions": "corruptions_file"}
"""Attributes of a run folder that are the results of suites."""


@dataclass(frozen=True)
class Source:
    """Run whose encoder is benchmarked.

    Attributes:
        run: its folder.
        encoder: its encoder.
        sha256: hash of the backbone's weights.
    """

    run: RunDir
    encoder: Encoder
    sha256: str

    @classmethod
    def of(cls, run: RunDir) -> "Source":
        """Return the source with the encoder of a run folder.

        Raises:
            UsageError: when there is no encoder, or it is damaged.
        """
        encoder = load_encoder(run.path)
        return cls(run, encoder, weights_hash(encoder.backbone))


def config_of(source: Source, board: Board, cell: Cell, options: dict[str, Any]) -> RunConfig:
    """Return the configuration of a cell: the target's presets, and the published probe settings of the run's method.

    Targets that the leaderboard lacks have the presets alone.

    Args:
        source: the run.
        board, cell: the cell.
        options: fields of ``RunConfig`` that replace those of the presets and of the run.

    Raises:
        UsageError: for an option out of range, or when the method of an imported run is not known.
    """
    size = list(source.encoder.spec.shape[1:])
    resized = None if size == [cell.target.size] * 2 else size
    before = source.run.read_config().replace(devices=1, num_nodes=1)
    place = {} if before.data.data_dir is None else {"data_dir": before.data.data_dir}
    config = transferred(before, cell.target.data, norm=board.norm, image_size=resized, **place | options)
    config = config.replace(probe_protocol=cell.protocol, lpaft=cell.lpaft)
    if cell.target.n:
        row = published_probe(config.options(), pretrained_on=source.run.pretrained_on())
        config = config.replace(**row.options)
    check(config)
    return config


def settle(source: Source, folder: RunDir, config: RunConfig, *, overwrite: bool) -> None:
    """Refuse or clear the folder of a cell with other settings or of another encoder.

    Raises:
        UsageError: when it is such a folder and is not to be overwritten.
    """
    if not folder.config_file.is_file():
        return
    found = configuration.differences(config, folder.read_config())
    if not _same_encoder(source, folder):
        found.append(f"the encoder of {source.run.path.name}, there an earlier one")
    if not overwrite:
        refuse(folder.path, found, "a cell")
    elif found:
        with locked(folder.path):
            folder.start(config, overwrite=True)


def unfinished(source: Source, cell: Cell, board: str) -> list[str]:
    """Return the stages of a cell that have no complete result for the run's encoder."""
    folder = cell.folder(source.run, board)
    if not (folder.classifier_file.is_file() and folder.probe_file.is_file() and _same_encoder(source, folder)):
        return ["probe", *cell.target.evaluations]
    if read_record(folder.probe_file)["protocol"] != cell.protocol:
        return ["probe", *cell.target.evaluations]
    digest = weights_hash(load_classifier(folder.path))
    return [name for name in cell.target.evaluations if result_of(folder, name, digest) is None]


def result_of(folder: RunDir, evaluation: str, digest: str) -> dict[str, Any] | None:
    """Return the complete result of an evaluation of the weights with this hash; None if there is none."""
    file = getattr(folder, RESULTS[evaluation])
    if not file.is_file():
        return None
    found = read_record(file)
    whole = found.get("complete", True) and (evaluation != "corruptions" or set(NAMES) <= set(found["accuracy"]))
    return found if whole and found.get("weights_sha256") == digest else None


def _same_encoder(source: Source, folder: RunDir) -> bool:
    """Return whether a cell has the encoder of the run, or none yet."""
    return not folder.pretraining_file.is_file() or has_encoder(folder, source.sha256)
