"""What earlier nights encoded: looked up by the text's hash, and only where the same model made it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nightjar.stage import Night
from nightjar.stages.encoding.plan import KEY, hash_keys
from nightjar.stages.encoding.spec import TextTables, what_changed
from nightjar.store import Committed, Dataset, Store, committed_dates
from nightjar.tables import Table


def text_keys(committed: Committed) -> tuple[np.ndarray, np.ndarray]:
    """Of a table with text_hash: the keys of all rows (n,) and the first row of each part (p+1,)."""
    columns = (committed.read_part(entry, ["text_hash"]).column("text_hash") for entry in committed.parts)
    keys = [hash_keys(column) for column in columns]
    offsets = np.cumsum([0, *map(len, keys)])
    joined: np.ndarray = np.concatenate([np.empty(0, KEY), *keys])
    return joined, offsets


@dataclass(frozen=True)
class Earlier:
    """An earlier night's embeddings by the same model. keys: (k,) of its rows; bad: key -> reason."""

    committed: Committed
    keys: np.ndarray
    bad: Mapping[bytes, str]

    def without_bad(self) -> Earlier:
        """As if the bad texts had not been there: a stand-in must not pass for their vector."""
        keys = self.keys.copy()
        keys[np.isin(keys, np.array(list(self.bad), KEY))] = b""
        return replace(self, keys=keys, bad={})


@dataclass(frozen=True)
class Wanted:
    """Whose vectors of which texts may be taken over: a model's, and for float32 none that were rounded to
    float16.
    """

    tables: TextTables
    fingerprint: str
    facts: Mapping[str, Any]

    def met_by(self, committed: Committed) -> bool:
        metrics = committed.manifest.metrics
        before = (metrics.get("encoder") or {}).get("storage", "float32")
        rounded = before == "float16" and self.facts["storage"] == "float32"
        return metrics.get("model") == self.fingerprint and not rounded


def find_reusable(night: Night, wanted: Wanted, retry: bool = False) -> Earlier | None:
    """The newest commit made by the same model, or None; another model's vectors never mix in.

    retry: texts that it could not encode are new again.
    """
    for store in (night.store, night.lender):
        for found in _commits(store, wanted.tables.embeddings) if store else ():
            if wanted.met_by(found) and (bad := _known_bad(found, wanted.tables)) is not None:
                earlier = Earlier(found, text_keys(found)[0], bad)
                return earlier.without_bad() if retry else earlier
    return None


def _commits(store: Store, embeddings: Table) -> Iterator[Committed]:
    """Commits of embeddings, newest first."""
    for ds in reversed(committed_dates(store, embeddings)):
        if (found := Dataset(store, embeddings, ds).committed()) is not None:
            yield found


def _known_bad(embeddings: Committed, tables: TextTables) -> dict[bytes, str] | None:
    """Texts that got a stand-in: key -> reason; None where there are such and nothing says which."""
    dataset = Dataset(embeddings.dataset.store, tables.quarantine, embeddings.dataset.ds)
    committed = dataset.committed()
    if committed is None or committed.manifest.fingerprint != embeddings.manifest.fingerprint:
        return None if embeddings.manifest.metrics.get("quarantine") else {}
    rows = committed.read(["payload", "reason"]).to_pylist()
    return {bytes.fromhex(json.loads(row["payload"])["text_hash"][:32]): row["reason"] for row in rows}


def quarantined_rows(keys: np.ndarray, earlier: Earlier | None) -> dict[int, str]:
    """Rows of tonight whose text an earlier night found bad: row -> reason."""
    if earlier is None or not earlier.bad:
        return {}
    rows = np.flatnonzero(np.isin(keys, np.array(list(earlier.bad), keys.dtype)))
    return {int(row): earlier.bad[bytes(keys[row]).ljust(16, b"\0")] for row in rows}


def say_what_changed(night: Night, wanted: Wanted, n_new: int) -> None:
    """One line, before anything is encoded, where the newest commit was made by another model."""
    newest = next(_commits(night.store, wanted.tables.embeddings), None)
    if newest is None or wanted.met_by(newest):
        return
    why = what_changed(newest.manifest.metrics.get("encoder") or {}, wanted.facts)
    night.report.line(
        f"{wanted.tables.stage}: the model is another than on {newest.dataset.ds} ({why}); "
        f"{n_new:,} texts are encoded again"
    )
