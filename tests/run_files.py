"""What tests ask of the files of a run folder."""

import json
import zipfile

import yaml

from acl_plugin.runtime.files import intact

OF_THE_CLOCK = {"seconds", "resumed"}


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def untimed(values):
    """JSON values without what tells the time, at any depth."""
    if isinstance(values, dict):
        return {k: untimed(v) for k, v in values.items() if k not in OF_THE_CLOCK}
    return [untimed(v) for v in values] if isinstance(values, list) else values


def contents(folder):
    """Every file by its name; of JSON all but the time it took. Checkpoints and TensorBoard's events tell the time."""
    found = {}
    for path in files(folder):
        if path.suffix == ".json":
            found[path.relative_to(folder)] = untimed(json.loads(path.read_text()))
        elif path.suffix != ".ckpt" and "tensorboard" not in path.parts:
            found[path.relative_to(folder)] = path.read_bytes()
    return found


def check_whole(folder):
    """No file is there in part."""
    for path in files(folder):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix in (".pt", ".ckpt"):
            assert intact(path), path
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                assert file.testzip() is None, path
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.suffix == ".csv":
            lines = path.read_text().splitlines()
            assert len({line.count(",") for line in lines}) == 1
            assert path.read_text().endswith("\n")
        elif path.suffix == ".svg":
            assert path.read_text().rstrip().endswith("</svg>")


def damage(path, where=0.5):
    """Flip a byte of a file that torch.save wrote, inside its largest record (not in the padding between two)."""
    with zipfile.ZipFile(path) as file:
        record = max(file.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    names = content[record.header_offset + 26 : record.header_offset + 30]
    start = record.header_offset + 30 + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
    content[start + int(where * (record.file_size - 1))] ^= 1
    path.write_bytes(content)
