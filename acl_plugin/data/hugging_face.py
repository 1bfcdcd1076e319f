"""Datasets of the Hugging Face hub, or local folders in its form, through the ``datasets`` library."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.data.form import size_of
from acl_plugin.data.image_files import decode, read_content
from acl_plugin.data.images import UNLABELED, DataSet
from acl_plugin.data.own_images import Listing, read_splits, warn_of_several_classes
from acl_plugin.data.sources import Source
from acl_plugin.errors import UsageError, missing_extra, reason, unknown
from acl_plugin.registry import DATASETS
from acl_plugin.runtime.paths import user_path

logger = logging.getLogger(__name__)

TEST_SPLITS = "test", "validation", "valid", "val"
"""Names of the split with the test images; the first that is there."""
ALLOWED = "hf:NAME of the hub, or hf:FOLDER"
MOVED = "`data_dir` names the folder of its files, for a copy or where they have moved"


@DATASETS.register("hf")
def _hugging_face(config: DataConfig) -> DataSet:
    """hf:NAME: a dataset of the Hugging Face hub, such as hf:uoft-cs/cifar10, or a local folder of parquet files."""
    name = config.data.partition(":")[2]
    folder = _folder(name, config)
    splits = _splits(name, folder)
    train = splits.get("train")
    test = next((splits[split] for split in TEST_SPLITS if split in splits), None)
    if train is None:
        raise _without_split("train", splits, name)
    image = _image_column(train, config, name)
    label = _label_column(train, config, name)
    if label is not None and test is None:
        raise _without_split("test", splits, name)
    classes = () if label is None else _classes([train, test], label)
    if label is not None:
        _require_same_classes(name, folder, label)
    first = _listing(train, image, label, classes)
    second = _listing(test if label else train.select([]), image, label, classes)
    size = _first_size(first[0], config) if config.image_size is None else size_of(config.image_size)
    pair = read_splits(config, first, second, size)
    warn_of_several_classes(config.data, *pair)
    return DataSet(config.data, *pair, classes, *pair[0].mean_and_std())


@dataclass(frozen=True)
class Rows:
    """Encoded images in the rows of a table, see ``sources.Source``.

    Attributes:
        table: a ``datasets.Dataset`` whose images are not decoded.
        column: column of the images.
        rows: (N,) rows of the images.
    """

    table: Any
    column: str
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Tensor) -> "Rows":
        return replace(self, rows=self.rows[chosen])

    def name(self, position: int) -> str:
        return f"{self.table.info.dataset_name or 'row'} {self.table.split or ''}[{int(self.rows[position])}]"

    def content(self, position: int) -> bytes:
        image = self.table[int(self.rows[position])][self.column]
        if image is None:
            return b""
        return image["bytes"] if image["bytes"] is not None else read_content(Path(image["path"]))

    def identity(self) -> str:
        """Return a hash of the library's files of the table, with their times of change, and the rows."""
        files = [Path(file["filename"]) for file in self.table.cache_files]
        assert files or not len(self), "a table in memory has no identity"
        states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(f"{states} {self.column} {self.table.split}".encode())
        digest.update(self.rows.numpy().tobytes())
        return digest.hexdigest()


def _folder(name: str, config: DataConfig) -> Path | None:
    """Return the local folder of a dataset; None on the hub.

    A name that is no folder belongs to the hub, unless it can only be a path.
    """
    if not name:
        raise _refused("is missing", name, ALLOWED)
    if config.data_dir is not None:
        folder, parameter, given = config.data_dir, "data_dir", str(config.data_dir)
    else:
        folder, parameter, given = user_path(name, "data"), "data", f"hf:{name}"
    if folder.is_dir():
        return folder
    if parameter == "data" and not (name.startswith((".", "~")) or Path(name).is_absolute()):
        return None
    message = f"`{parameter}` {given} is no folder; allowed is {ALLOWED}; {MOVED}"
    raise UsageError(message, parameter=parameter, given=given, allowed=ALLOWED)


def _splits(name: str, folder: Path | None) -> dict[str, Any]:
    """Return the tables of a dataset by split."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("`data` hf:NAME", "hf", error, "data") from error
    for noisy in ("datasets", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        place = name if folder is None else str(folder)
        found = datasets.load_dataset(place, keep_in_memory=False)  # in files, which identify the images
    except Exception as error:  # of any type: the hub, the network, damaged files
        raise _refused(
            f"cannot be loaded: {reason(error)}", name, f"a dataset that datasets.load_dataset loads; {MOVED}"
        ) from error
    return dict(found)


def _image_column(table: Any, config: DataConfig, name: str) -> str:
    from datasets import Image

    found = [column for column, kind in table.features.items() if isinstance(kind, Image)]
    if not found:
        raise _refused(f"has no column of images, but {', '.join(table.features)}", name, "a dataset of images")
    return (
        _only("image_column", found, name)
        if config.image_column is None
        else _named("image_column", config.image_column, found)
    )


def _label_column(table: Any, config: DataConfig, name: str) -> str | None:
    """Return the column of labels; None without one."""
    from datasets import ClassLabel

    if config.label_column is not None:
        return _named("label_column", config.label_column, table.features)
    found = [column for column, kind in table.features.items() if isinstance(kind, ClassLabel)]
    if not found:
        _warn_of_labels(table, name)
        return None
    return _only("label_column", found, name)


def _warn_of_labels(table: Any, name: str) -> None:
    """Name the columns that could hold labels, where images are taken without them."""
    from datasets import Value

    columns = [column for column, kind in table.features.items() if isinstance(kind, Value)]
    if columns:
        what = f"the images are taken without labels; labels in a column ({', '.join(columns)}) take --label-column"
        logger.warning(f"hf:{name}: {what}")


def _named(option: str, given: str, columns: Iterable[str]) -> str:
    if given not in columns:
        raise unknown(f"`{option}`", given, columns, parameter=option)
    return given


def _only(option: str, found: Sequence[str], name: str) -> str:
    if len(found) > 1:
        message = f"`{option}`: {name} has the columns {', '.join(found)}; name one of them"
        raise UsageError(message, parameter=option, given=None, allowed=tuple(found))
    return found[0]


def _first_size(source: Source, config: DataConfig) -> tuple[int, int]:
    """Return the height and width of the first image, or of the first that can be read if others are skipped."""
    fault: UsageError | None = None
    for position in range(len(source)):
        try:
            width, height = decode(source.content(position), source.name(position)).size
            return height, width
        except UsageError as error:
            fault = fault or error
            if not config.skip_unreadable:
                break
    assert fault is not None, "the library refuses splits without images"
    raise fault


def _classes(tables: Sequence[Any], label: str) -> tuple[str, ...]:
    """Return the names of the classes: those of the column's type, or else its values, of which numbers are sorted."""
    from datasets import ClassLabel, Value

    kind = tables[0].features[label]
    if isinstance(kind, ClassLabel):
        return tuple(kind.names)
    if not isinstance(kind, Value):
        allowed = "a column of names or numbers, one for each image"
        message = f"`label_column` {label}: its values are of the type {type(kind).__name__}; allowed is {allowed}"
        raise UsageError(message, parameter="label_column", given=label, allowed=allowed)
    values = {value for table in tables for value in table.unique(label) if not _is_missing(value)}
    others = [value for value in values if isinstance(value, float) and not value.is_integer()]
    if others:
        allowed = "a column of names or whole numbers, one for each image"
        message = f"`label_column` {label}: {min(others)} is no whole number; allowed is {allowed}"
        raise UsageError(message, parameter="label_column", given=label, allowed=allowed)
    return tuple(str(value) for value in sorted(values))


def _require_same_classes(name: str, folder: Path | None, label: str) -> None:
    """Refuse a folder whose files number their classes differently, as the library reads all by the names of one."""
    from datasets import load_dataset_builder

    if folder is None:  # on the hub, whose own uploads are checked by the library
        return
    files = [Path(file) for split in load_dataset_builder(str(folder)).config.data_files.values() for file in split]
    known: dict[int, tuple[str, str]] = {}
    for file in files:
        for number, class_name in enumerate(_stored_classes(file, label)):
            there, where = known.setdefault(number, (class_name, file.name))
            if there != class_name:
                fault = (
                    f"numbers its classes differently: {number} is {there} in {where}, and {class_name} in {file.name}"
                )
                raise _refused(fault, name, "one ClassLabel for all files (cast_column)")


def _stored_classes(file: Path, label: str) -> Sequence[str]:
    """Return the names of the classes that the library has stored in a parquet file; empty if there are none."""
    from pyarrow import parquet

    if file.suffix != ".parquet" or not file.is_file():
        return ()
    stored = (parquet.read_schema(file).metadata or {}).get(b"huggingface", b"{}")
    names: Sequence[str] = json.loads(stored).get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return names


def _is_missing(value: Any) -> bool:
    """Return whether a value is no label: None, NaN as in pandas, an empty name, or -1 as in the library."""
    return value is None or value != value or value in ("", -1)


def _listing(table: Any, image: str, label: str | None, classes: Sequence[str]) -> Listing:
    from datasets import ClassLabel, Image

    rows = torch.arange(len(table))
    source = Rows(table.cast_column(image, Image(decode=False)).select_columns([image]), image, rows)
    if label is None:
        return source, torch.full_like(rows, UNLABELED)
    values = table.select_columns([label])[:][label]
    if isinstance(table.features[label], ClassLabel):
        labels = torch.tensor([UNLABELED if value is None else value for value in values], dtype=torch.int64)
    else:
        number = {name: i for i, name in enumerate(classes)}
        numbers = [UNLABELED if _is_missing(value) else number[str(value)] for value in values]
        labels = torch.tensor(numbers, dtype=torch.int64)
    if (labels < 0).any():
        without = f"{int((labels < 0).sum())} of {len(labels)} images of the split {table.split} have no label"
        raise UsageError(
            f"`label_column` {label}: {without}", parameter="label_column", given=label, allowed="labels of all"
        )
    return source, labels


def _without_split(split: str, splits: Iterable[str], name: str) -> UsageError:
    return _refused(
        f"has no split {split}, but {', '.join(splits)}", name, f"train, and one of {', '.join(TEST_SPLITS)}"
    )


def _refused(fault: str, name: str, allowed: str) -> UsageError:
    given = f"hf:{name}"
    return UsageError(f"`data` {given} {fault}; allowed is {allowed}", parameter="data", given=given, allowed=allowed)
