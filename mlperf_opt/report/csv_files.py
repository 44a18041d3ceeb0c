"""metrics.csv and its sisters: written so that nothing is lost, read so that nothing is guessed."""

from __future__ import annotations

import csv
import io
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlperf_opt.errors import ConfigError
from mlperf_opt.records import SCHEMA, Record, columns, to_row
from mlperf_opt.report.files import write_text

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet takes a cell that starts like this for a formula. The apostrophe that makes it a text again is itself
# on the list, so that reading can take exactly one away.
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "'")
_DTYPES = {int: "Int64", float: "Float64", bool: "boolean", str: "string"}


def write_metrics(path: Path, records: Sequence[Record]) -> None:
    """Write one row per record, in the columns of `Record`.

    Cells that weren't measured are empty; numbers have the digits that read back to the same number; a number that is
    not one is written as ``nan``, since it was measured.

    Raises:
        MlperfOptError: the file can't be written.
    """
    _write(path, columns(), [to_row(record) for record in records])


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of any kind (a pass's table, summary.csv); the columns are all keys, in the order in which they first come.

    Raises:
        MlperfOptError: the file can't be written.
    """
    _write(path, list(dict.fromkeys(key for row in rows for key in row)), rows)


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a metrics.csv into pandas' nullable types: Int64, Float64, boolean, string.

    Columns that this version doesn't know are left out. An empty cell, and a number that is ``nan``, read as missing.

    Raises:
        ConfigError: it can't be read, is not a metrics.csv, has another schema or lacks columns, or a cell is damaged.
    """
    import pandas as pd

    header, rows = _read_cells(path)
    if not rows:
        raise ConfigError(f"{path}: not a metrics.csv of mlperf_opt (no rows)")
    schemas = sorted({row[header.index("schema")] for row in rows})
    if schemas != [str(SCHEMA)]:
        raise ConfigError(f"{path}: written with schema {', '.join(map(repr, schemas))}; this version reads schema {SCHEMA}")
    missing = [name for name in columns() if name not in header]
    if missing:
        raise ConfigError(f"{path}: not a metrics.csv of this version (missing columns: {', '.join(missing)})")
    frame = {}
    for name, (kind, optional) in _column_types().items():
        place = header.index(name)
        cells = [_parse(row[place], kind, optional, f"{path}, row {line}, {name}") for line, row in enumerate(rows, 2)]
        frame[name] = pd.array(cells, dtype=_DTYPES[kind])  # type: ignore[call-overload]
    return pd.DataFrame(frame)


def _write(path: Path, names: list[str], rows: Sequence[Mapping[str, object]]) -> None:
    import pandas as pd

    # As objects, so that integers stay integers beside empty cells.
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    frame = pd.DataFrame(cells, columns=[str(_cell(name)) for name in names], dtype=object)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _cell(value: object) -> object:
    if isinstance(value, str):
        # a bare carriage return would end the row for most readers, since the writer quotes only \n
        text = value.replace("\r\n", "\n").replace("\r", "\n")
        return f"'{text}" if text.startswith(_FORMULA) else text
    # pandas would write a measured NaN like a cell that wasn't measured
    return "nan" if isinstance(value, float) and value != value else value  # noqa: PLR0124


def _read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a metrics.csv of mlperf_opt (not a text in UTF-8)") from None
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise ConfigError(f"{path}: not a CSV file ({error})") from None
    except ValueError:  # nothing to unpack
        raise ConfigError(f"{path}: not a metrics.csv of mlperf_opt (empty)") from None
    if "schema" not in header:
        raise ConfigError(f"{path}: not a metrics.csv of mlperf_opt (no column schema)")
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ConfigError(f"{path}, row {line}: {len(row)} cells under {len(header)} columns (a damaged file?)")
    return header, rows


def _column_types() -> dict[str, tuple[type, bool]]:
    """Return column -> (int | float | bool | str, may be empty), from the annotations of `Record`."""
    hints = typing.get_type_hints(Record)
    found = {}
    for field in fields(Record):
        options = (
            typing.get_args(hints[field.name]) if isinstance(hints[field.name], types.UnionType) else (hints[field.name],)
        )
        found[field.name.rstrip("_")] = options[0], types.NoneType in options
    return found


def _parse(cell: str, kind: type, optional: bool, where: str) -> Any:
    if cell == "" and optional:
        return None
    if kind is str:
        return cell.removeprefix("'")
    try:
        return _PARSERS[kind](cell)
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: {cell[:40]!r} is not {_KINDS[kind]}") from None


def _whole_number(cell: str) -> int:
    number = int(cell)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


_PARSERS: dict[type, Callable[[str], Any]] = {
    int: _whole_number,
    float: float,
    bool: {"True": True, "False": False}.__getitem__,
}
_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}
