"""Text lines from columns without a Python loop: times, hexadecimal ids, whole files."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from typing import BinaryIO
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nightjar.generate.catalogue import Ints

EPOCH = date(1970, 1, 1)
_CLOCK = pa.array([f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}" for s in range(86_400)])
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def concat(*pieces: pa.Array | str) -> pa.Array:
    """The pieces joined row by row; a plain string is the same in every row."""
    return pc.binary_join_element_wise(*[pa.scalar(p) if isinstance(p, str) else p for p in pieces], "")


def take(table: pa.Array, numbers: Ints) -> pa.Array:
    """The entries of a table of strings."""
    return table.take(pa.array(numbers))


def hex_ids(events: NDArray[np.uint64]) -> pa.Array:
    """Sixteen hexadecimal digits for every number."""
    raw = events.astype(">u8").view(np.uint8).reshape(len(events), 8)
    digits = np.empty((len(events), 16), np.uint8)
    digits[:, 0::2] = _HEX[raw >> 4]
    digits[:, 1::2] = _HEX[raw & 15]
    offsets = np.arange(0, 16 * len(events) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(events), pa.py_buffer(offsets), pa.py_buffer(digits))


def local_times(time_ms: Ints, zone: str, date_format: str) -> pa.Array:
    """Wall-clock times of a zone, ``date_format`` (strftime) and HH:MM:SS; milliseconds are cut off."""
    hour, which = np.unique(time_ms // 3_600_000, return_inverse=True)
    clock = ZoneInfo(zone)
    offset = np.array([_offset_s(int(h) * 3600, clock) for h in hour], np.int64)
    local = time_ms // 1000 + (offset[which] if len(offset) else 0)
    days, of = np.unique(local // 86_400, return_inverse=True)
    dates = pa.array([(EPOCH + timedelta(days=int(d))).strftime(date_format) for d in days], pa.string())
    return concat(take(dates, of), " ", take(_CLOCK, local % 86_400))


def _offset_s(second: int, clock: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(second, clock).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


def cents(amounts: Ints) -> pa.Array:
    """Non-negative cents as decimal text with two places."""
    small = pc.utf8_lpad(pa.array(amounts % 100).cast(pa.string()), 2, "0")
    return concat(pa.array(amounts // 100).cast(pa.string()), ".", small)


def json_strings(texts: pa.Array, n_plain: int) -> pa.Array:
    """JSON tokens of texts; the first ``n_plain`` need no escaping, the rest are few; null is ``null``."""
    tail = pa.array([json.dumps(text) for text in texts[n_plain:].to_pylist()], pa.string())
    return pa.concat_arrays([concat('"', texts[:n_plain], '"'), tail])


def csv_strings(texts: pa.Array) -> pa.Array:
    """CSV fields: quoted where they hold a comma or a quote."""
    quoted = concat('"', pc.replace_substring(texts, '"', '""'), '"')
    return pc.if_else(pc.match_substring_regex(texts, '[,"]'), quoted, texts)


def override(texts: pa.Array, rows: NDArray[np.bool_], replacements: list[str]) -> pa.Array:
    """The texts with the rows of a mask replaced, in order."""
    if not rows.any():
        return texts
    return pc.replace_with_mask(texts, pa.array(rows), pa.array(replacements, pa.string()))


def write_lines(file: BinaryIO, lines: pa.Array) -> None:
    """Append the lines, each ended by a newline, straight from Arrow's buffer."""
    if not len(lines):
        return
    ended = concat(lines, "\n")
    chunks = ended.chunks if isinstance(ended, pa.ChunkedArray) else [ended]
    for chunk in chunks:
        width = "int64" if pa.types.is_large_string(chunk.type) else "int32"
        offsets = np.frombuffer(chunk.buffers()[1], width)[chunk.offset : chunk.offset + len(chunk) + 1]
        file.write(chunk.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0])))
