"""A relation between items as rows of a table, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from nightjar.store import Committed


def relation_rows(relation: sparse.csr_matrix, first: int = 0) -> pa.Table:
    """Rows of a relation, (n, n_items) float32 CSR, those of the items from number `first` on: one an item,
    with its neighbours and their scores.
    """
    offsets = pa.array(relation.indptr.astype(np.int32))
    return pa.table(
        {
            "item_num": pa.array(np.arange(first, first + relation.shape[0])),
            "item_nums": pa.ListArray.from_arrays(offsets, pa.array(relation.indices.astype(np.int32))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(relation.data.astype(np.float32))),
        }
    )


def read_relation(rows: Committed, n_items: int) -> sparse.csr_matrix:
    """The inverse of `relation_rows` for a table of one relation, whose parts hold all items in order."""
    found = rows.read(["item_nums", "scores"])
    lengths = pc.list_value_length(found["item_nums"]).to_numpy()
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    nums, scores = (pc.list_flatten(found[name]).to_numpy() for name in ("item_nums", "scores"))
    return sparse.csr_matrix((scores, nums, indptr), (n_items, n_items))
