"""Store result files in a compact, lossless form: each shared setting and each name is stored once.

A list of records is packed by column:

- ``{"same": v}`` is a value that all records share, and ``{"each": [...]}`` one value per record;
- ``{"fields": {name: column}}`` is a dictionary, and ``{"items": [column]}`` a list of dictionaries;
- ``"of"`` lists the numbers of the records that have a field, if some lack it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.runtime.files import read_json, write_atomic

TABLE = "records"
"""Key that marks a packed list, with its number of records."""
Column = dict[str, Any]


def write(path: Path, values: Any) -> None:
    """Write ``values`` as JSON, with every list of records packed; one column per line."""
    write_atomic(path, (lines(pack(values)) + "\n").encode())


def read(path: Path) -> Any:
    """Return the values that ``write`` stored; JSON without packed lists is returned unchanged."""
    return unpack(read_json(path))


def pack(values: Any) -> Any:
    """Replace every list of dictionaries in ``values`` by a table."""
    if _are_records(values):
        return {TABLE: len(values), "table": _column(values)}
    if isinstance(values, dict):
        if TABLE in values:
            raise UsageError(
                f"results have a field {TABLE!r}: the name is reserved", parameter="values", given=TABLE, allowed=None
            )
        return {name: pack(value) for name, value in values.items()}
    return values


def unpack(values: Any) -> Any:
    """Undo ``pack``."""
    if isinstance(values, dict) and TABLE in values:
        return _values(values["table"], values[TABLE])
    if isinstance(values, dict):
        return {name: unpack(value) for name, value in values.items()}
    return values


def _are_records(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, dict) for value in values)


def _column(values: Sequence[Any]) -> Column:
    if len({json.dumps(value) for value in values}) == 1:  # as text: 1, 1.0 and true differ
        return {"same": values[0]}
    if all(isinstance(value, dict) for value in values):
        return {"fields": {name: _field(name, values) for name in dict.fromkeys(k for v in values for k in v)}}
    if all(_are_records(value) and len(value) == len(values[0]) for value in values):
        return {"items": [_column(each) for each in zip(*values, strict=True)]}
    return {"each": list(values)}


def _field(name: str, records: Sequence[dict[str, Any]]) -> Column:
    having = [number for number, record in enumerate(records) if name in record]
    column = _column([records[number][name] for number in having])
    return column if len(having) == len(records) else {"of": having} | column


def _values(column: Column, count: int) -> list[Any]:
    if "same" in column:
        return [json.loads(json.dumps(column["same"])) for _ in range(count)]
    if "each" in column:
        return list(column["each"])
    if "items" in column:
        return [list(each) for each in zip(*(_values(item, count) for item in column["items"]), strict=True)]
    records: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, field in column["fields"].items():
        having = field.get("of", range(count))
        for number, value in zip(having, _values(field, len(having)), strict=True):
            records[number][name] = value
    return records


def lines(values: Any, depth: int = 0) -> str:
    """Return JSON with one line per column, or per field of a plain dictionary."""
    if isinstance(values, dict) and values and depth < 6 and "same" not in values and "each" not in values:
        inner = ",\n".join(f"{json.dumps(name)}:{lines(value, depth + 1)}" for name, value in values.items())
        return "{\n" + inner + "\n}"
    return json.dumps(values, separators=(",", ":"))
