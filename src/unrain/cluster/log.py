"""The log of a run: what became of each input, as rows that any program reads.

While a run lasts, its rows go into parts of JSON Lines below OUT/unrain-log, each of which is written whole
or not at all, as object storage wants it: a run that is killed loses the rows of its last seconds at most,
and its results are found by their names. Later rows of a result replace earlier ones. Where pyarrow is
installed, OUT/unrain-log.parquet has the final row of each input once the run is over.
"""

import io
import json
import platform
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from unrain.cluster import storage
from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.plan import Outcome, Status
from unrain.version import __version__

FOLDER, PARQUET = "unrain-log", "unrain-log.parquet"
# Seconds between two parts: five at first, and the longer the run the more, so that there are never many.
_PAUSE, _PAUSE_SHARE = 5.0, 0.01
_ROWS = 10_000
_HALF_PAIR = re.compile(rb"\\\\|\\ud[89a-f][0-9a-f]{2}")


@dataclass(frozen=True)
class LogRow:
    """What became of one input.

    Attributes:
        input: Its path or address.
        result: The name of its derained picture or video below the folder of results.
        status: derained, skipped (the result was there) or failed.
        message: Why it was skipped, or the whole error.
        seconds: How long it took in its worker.
        recursions: How many were computed.
        device: Where the network ran.
        bytes: Of the input.
        input_sha256: Digest of the input's bytes; empty if they could not be read.
        result_sha256: Digest of the result's bytes; empty if there is none.
        written: The paths or addresses of all results that were written.
        frames: How many frames a video has; 0 for a picture.
        hardly_any_rain: Whether next to no rain was found.
        warnings: What is missed in the result.
        notes: What was not kept as it was.
        host: The machine that it ran on.
        finished: When, in UTC.
        unrain: The version.
    """

    input: str
    result: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    recursions: int = 0
    device: str = ""
    bytes: int = 0
    input_sha256: str = ""
    result_sha256: str = ""
    written: tuple[str, ...] = ()
    frames: int = 0
    hardly_any_rain: bool = False
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: str = ""
    finished: str = ""
    unrain: str = ""

    @property
    def outcome(self) -> Outcome:
        """What the screen says of it."""
        return Outcome(
            self.input,
            self.status,
            self.message,
            self.written,
            self.notes,
            self.seconds,
            self.recursions,
            self.warnings,
            self.frames,
            self.hardly_any_rain,
        )


def now() -> str:
    """Return the time in UTC, as rows have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Log:
    """The log of one run, and what earlier runs wrote into the same folder."""

    def __init__(self, output: str, share: str = "1-of-1") -> None:
        """Look for the log of earlier runs.

        Args:
            output: The folder or address of the results.
            share: The share of the work that this run does, for the names of its parts.

        Raises:
            UnrainError: It cannot be read.
        """
        self._output = output
        self._folder = storage.join(output, FOLDER)
        self.before = _parts(self._folder)
        numbers = [int(name.partition("-")[0]) for name in self.before]
        # The number orders the runs, whatever the clocks of their machines say.
        self._name = f"{max(numbers, default=0) + 1:05d}-{share}-{secrets.token_hex(4)}"
        self._rows: list[LogRow] = []
        self._mine: list[str] = []
        self._started = self._written = time.monotonic()

    def earlier(self) -> dict[str, tuple[Status, str]]:
        """Return the status and message of each result in earlier runs.

        Raises:
            UnrainError: A part cannot be read.
        """
        found: dict[str, tuple[Status, str]] = {}
        for name in self.before:
            for row in _rows(storage.join(self._folder, name)):
                found[row["result"]] = row["status"], row["message"]
        return found

    def open(self, settings: Mapping[str, Any]) -> None:
        """Write down what this run does, and thereby find out whether anything can be written.

        Raises:
            UnrainError: It cannot.
        """
        run = {"started": now(), "host": platform.node(), "unrain": __version__, **settings}
        text = json.dumps(run, indent=2, default=str) + "\n"
        storage.write(text.encode(), storage.join(self._folder, f"{self._name}.json"))

    def add(self, row: LogRow) -> None:
        """Add a row, and write those of the last seconds.

        Raises:
            UnrainError: They cannot be written.
        """
        self._rows.append(row)
        passed, pause = time.monotonic() - self._written, (self._written - self._started) * _PAUSE_SHARE
        if passed > max(_PAUSE, pause) or len(self._rows) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not written yet.

        Raises:
            UnrainError: They cannot be written.
        """
        if self._rows:
            name = f"{self._name}-{len(self._mine) + 1:05d}.jsonl"
            lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self._rows)
            storage.write("".join(lines).encode(errors="backslashreplace"), storage.join(self._folder, name))
            self._mine.append(name)
            self._rows = []
        self._written = time.monotonic()

    def close(self) -> None:
        """Write what is left, and make one part of this run's.

        Raises:
            UnrainError: It cannot be written.
        """
        self.flush()
        if len(self._mine) > 1:
            whole = b"".join(storage.read(storage.join(self._folder, name)) for name in self._mine)
            # Read after all the parts that it replaces, should one of them stay.
            storage.write(whole, storage.join(self._folder, f"{self._name}-all.jsonl"))
            for name in self._mine:
                storage.remove(storage.join(self._folder, name))
            self._mine = []

    def write_parquet(self) -> str | None:
        """Write the final row of each input into one file.

        Returns:
            The file; None without pyarrow.

        Raises:
            UnrainError: It cannot be written.
        """
        try:
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            return None
        target = storage.join(self._output, PARQUET)
        before = None
        # Another share may end at the same time: whoever writes last has seen the parts of all.
        while before != (parts := _parts(self._folder)):
            table = _table([storage.join(self._folder, name) for name in parts])
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            storage.write(buffer.getvalue(), target)
            before = parts
        return target


def _parts(folder: str) -> list[str]:
    """List the parts of all runs, the latest last."""
    names = [name for name in storage.find(folder) if name.endswith(".jsonl") and name[:5].isdecimal()]
    return sorted(names)


def _rows(part: str) -> Iterator[dict[str, Any]]:
    try:
        for line in storage.read(part).splitlines():
            yield {"message": "", **json.loads(line)}
    except (ValueError, TypeError) as error:
        raise UnrainError(f"{part}: damaged ({one_line(error)}), remove it: its results are kept") from error


def _table(parts: list[str]) -> Any:  # noqa: ANN401  (pyarrow has no types)
    """Read parts into a table with the last row of each result."""
    import pyarrow as pa
    from pyarrow import json as pa_json

    kinds: dict[Any, Any] = {
        str: pa.string(),
        Status: pa.string(),
        float: pa.float64(),
        int: pa.int64(),
        bool: pa.bool_(),
        tuple[str, ...]: pa.list_(pa.string()),
    }
    schema = pa.schema([(field.name, kinds[field.type]) for field in fields(LogRow)])
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = pa_json.ReadOptions(block_size=1 << 26)
    tables = []
    for part in parts:
        # A name that is no UTF-8 stands as half of a surrogate pair, which Parquet does not take.
        data = _HALF_PAIR.sub(lambda found: b"\\\\" if found[0] == b"\\\\" else b"?", storage.read(part))
        if data:
            tables.append(pa_json.read_json(io.BytesIO(data), read_options=reading, parse_options=options))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    last = {name: index for index, name in enumerate(table.column("result").to_pylist())}
    return table.take(pa.array(sorted(last.values()), pa.int64())).sort_by("result")
