"""The users to forget read without Spark, for the audit: not by the code that dropped their rows."""

from __future__ import annotations

import pyarrow as pa

from nightjar.stage import Night
from nightjar.stages.plain_lists import PlainList


def forget_list(night: Night) -> pa.Array | None:
    """The ids of all declared lists as text, without repeats; None where no list is declared."""
    lists = night.config.privacy.forget
    if not lists:
        return None
    found: list[pa.Array] = []
    for at, source in enumerate(lists):
        files = night.raw["forget_raw"][f"forget{at}"]
        plain = PlainList(source, files, "user_id", "user_id", f"privacy.forget.{at}")
        found += [chunk for batch in plain.batches() for chunk in batch["who"].chunks]
    return pa.chunked_array(found, pa.string()).unique()
