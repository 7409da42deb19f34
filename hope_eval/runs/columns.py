"""Records as columns, without a dict for each: pyarrow parses blocks of whole lines in parallel.

json.loads takes ten times as long and twenty times the memory. It decides about a block that pyarrow does not read as
expected: either json.loads reads it, or it says which line is damaged.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_eval.errors import StoreError

if TYPE_CHECKING:
    import pandas
    import pyarrow

_BLOCK = 4 << 20

# More threads would wait for the disk.
_MOST_THREADS = 8

# One record: a line of JSON.
Record = dict[str, Any]

# Called with the work done and the total, at the start and during the work.
Progress = Callable[[int, int], None]

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "float64": (int, float),
    "int32": (int,),
    "int64": (int,),
    "count": (int,),
    "list": (list,),
    "string": (str,),
    "struct": (dict,),
}
_BITS = {"int32": 31, "int64": 63, "count": 63}


def is_type(value: Any, type_: str) -> bool:
    """Whether a value that was read from JSON has a type of a `Field`, or one of those below.

    count: an integer above 0. counts, strings: lists of them. With `?`, null has the type too.
    """
    if type_.endswith("?"):
        return value is None or is_type(value, type_[:-1])
    if type_ in ("counts", "strings"):
        return isinstance(value, list) and all(is_type(item, type_[:-1]) for item in value)
    # In Python, True is an int; a grade may be one.
    if not isinstance(value, _TYPES[type_]) or (isinstance(value, bool) and type_ not in ("bool", "float64")):
        return False
    if isinstance(value, str):
        return _is_text(value)
    if type_ not in _BITS:
        return True
    assert isinstance(value, int)
    return (1 if type_ == "count" else -(1 << _BITS[type_])) <= value < 1 << _BITS[type_]


def _is_text(value: str) -> bool:
    """Whether a string can be written: JSON may hold half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Field:
    """A field of records; it may be read as a column, unless it is a list or a struct.

    name:     `hits`, or `grade.strict` for a field within a field.
    type:     bool, float64, int32, int64, string, list or struct.
    required: a record without it is damaged; if it is optional, it counts as 0, or as no category.
    category: it has few values, and becomes a pandas Categorical.
    """

    name: str
    type: str
    required: bool = True
    category: bool = False

    def of(self, record: dict[str, Any]) -> Any:
        """Its value in a record, or None. Raises ValueError for a value of another type."""
        outer, _, inner = self.name.partition(".")
        value = record.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if value is None and self.required:
            raise ValueError(f"it has no `{self.name}`")
        if value is not None and not is_type(value, self.type):
            raise ValueError(f"`{self.name}` is {value!r}")
        return value


_KIND = Field("kind", "string")


def read_columns(
    path: Path,
    end: int,
    kind: str,
    columns: Sequence[Field],
    progress: Progress = lambda done, total: None,
) -> tuple["pandas.DataFrame", list[dict[str, Any]]]:
    """The records of one kind as a frame, and all others as they are, both in the order of their lines.

    end:      bytes of the file that hold whole lines.
    progress: called at the start and after every block, in bytes.

    Raises StoreError for a line that is not a record, or has a value of another type than its field.
    """
    import pyarrow

    reader = _Reader(path, kind, columns)
    tables, others = [reader.empty()], []
    blocks = list(_blocks(path, end))
    progress(0, end)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        for (_, stop), (table, rest) in zip(blocks, pool.map(reader.read, blocks), strict=True):
            tables.append(table)
            others += rest
            progress(stop, end)
    whole = pyarrow.concat_tables(tables)
    tables.clear()
    # Column by column, so that the memory of a column is freed when pandas has it.
    frame: pandas.DataFrame = whole.to_pandas(split_blocks=True, self_destruct=True)
    return frame, others


def parsed(line: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError if it is not one."""
    try:
        record: dict[str, Any] = json.loads(line)
    except RecursionError:
        raise ValueError("it has too many brackets") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a record")
    return record


def damaged(path: Path, number: int, why: object) -> StoreError:
    """The error for a line that cannot be used."""
    return StoreError(f"{path}, line {number}, is damaged: {why}", remedy(path.parent))


def remedy(run: Path) -> str:
    """Remedy for a run that cannot be used."""
    return f"`hope-eval runs rm {run}`, then rerun its command"


def n_lines(path: Path, end: int) -> int:
    """Number of lines in the first `end` bytes."""
    if not end:
        return 0
    with path.open("rb") as stream:
        return sum(_n_lines(stream.read(min(_BLOCK, end - start))) for start in range(0, end, _BLOCK))


def _n_lines(data: bytes) -> int:
    # Takes a third of the time of bytes.count.
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _blocks(path: Path, end: int) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of blocks of whole lines."""
    if not end:
        return
    start = 0
    with path.open("rb") as stream:
        while start < end:
            stream.seek(min(start + _BLOCK, end) - 1)
            if not stream.readline():
                raise StoreError(f"{path} became shorter while it was read", "wait for the process that writes it")
            yield start, stream.tell()
            start = stream.tell()


class _Reader:
    """Reader of blocks of lines; threads may share it."""

    def __init__(self, path: Path, kind: str, columns: Sequence[Field]) -> None:
        import pyarrow
        from pyarrow import json as arrow_json

        self._path, self._kind, self._columns = path, kind, columns
        types: dict[str, Any] = {"kind": pyarrow.string()}
        for column in columns:
            outer, _, inner = column.name.partition(".")
            type_ = pyarrow.type_for_alias(column.type)
            types[outer] = pyarrow.struct([*types.get(outer, ()), pyarrow.field(inner, type_)]) if inner else type_
        self._schema = pyarrow.schema(list(types.items()))
        self._options = arrow_json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="ignore")

    def empty(self) -> "pyarrow.Table":
        """A table without lines."""
        return self._finished(self._schema.empty_table().flatten())

    def read(self, place: tuple[int, int]) -> tuple["pyarrow.Table", list[dict[str, Any]]]:
        """The records of a block that are of this kind, and all others."""
        from pyarrow import compute

        start, stop = place
        with self._path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(stop - start)
        table = self._fast(data)
        if table is None:
            table = self._slow(data, start)
        matches = compute.equal(table["kind"], self._kind)
        if compute.all(matches).as_py():
            return self._finished(table), []
        lines = zip(data.split(b"\n"), matches.to_pylist(), strict=False)
        return self._finished(table.filter(matches)), [json.loads(line) for line, is_match in lines if not is_match]

    def _fast(self, data: bytes) -> "pyarrow.Table | None":
        """The records of a block, or None if pyarrow meets a value that the schema does not have."""
        import pyarrow
        from pyarrow import compute
        from pyarrow import json as arrow_json

        options = arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        try:
            table = arrow_json.read_json(pyarrow.BufferReader(data), options, self._options).flatten().combine_chunks()
            if not data.isascii():
                # pyarrow does not decode fields that it was not asked for.
                data.decode()
        except (pyarrow.ArrowException, UnicodeDecodeError):
            return None
        if len(table) != _n_lines(data) or table["kind"].null_count:
            return None
        missing = [table[column.name].is_null() for column in self._columns if column.required]
        missing = [nulls for nulls in missing if compute.any(nulls).as_py()]
        matches = compute.equal(table["kind"], self._kind)
        return None if any(compute.any(compute.and_(nulls, matches)).as_py() for nulls in missing) else table

    def _slow(self, data: bytes, start: int) -> "pyarrow.Table":
        """The records of a block, read one by one. Raises StoreError for the first that is damaged."""
        import pyarrow

        values: dict[str, list[Any]] = {name: [] for name in ("kind", *(column.name for column in self._columns))}
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                record = parsed(line)
                values["kind"].append(_KIND.of(record))
                for column in self._columns:
                    values[column.name].append(column.of(record) if record["kind"] == self._kind else None)
            except ValueError as error:
                raise damaged(self._path, n_lines(self._path, start) + number, error) from error
        types = {"kind": "string"} | {column.name: column.type for column in self._columns}
        arrays = {name: pyarrow.array(cells, pyarrow.type_for_alias(types[name])) for name, cells in values.items()}
        return pyarrow.table(arrays)

    def _finished(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """The wanted columns, with 0 for a missing optional field."""
        import pyarrow

        arrays = []
        for column in self._columns:
            array = table[column.name]
            arrays.append(array.dictionary_encode() if column.category else array.fill_null(0))
        return pyarrow.table(arrays, names=[column.name for column in self._columns])
