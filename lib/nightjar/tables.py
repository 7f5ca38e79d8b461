"""The contract of every dataset: Arrow schema, key and invariants, all in this one file.

A part is checked against its table while it is written (store.py), so nothing that breaks a contract is
ever committed. Fields are nullable only where the schema says so. `*_id` are external strings, `*_num`
dense int64 numbers valid for one night. Vectors are float32 of a length (`dim`) known when written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightjar.errors import ContractError

TIME = pa.timestamp("us", tz="UTC")
WEIGHT_ONE = 1 << 20
"""Fixed-point 1.0 of interaction weights: integer sums do not depend on the order of addition."""

VectorType = Literal["float32", "float16"]
Check = Callable[[pa.Table], str | None]
"""Looks at one row group and returns what is wrong with it, or None."""


@dataclass(frozen=True)
class Table:
    """One dataset's contract.

    schema: Arrow fields; a list<float> field named in `vector` is written with a fixed size.
    vector_type: float32, or float16: then a vector is written as 2·dim bytes, little-endian.
    key: columns that identify a row; parts are sorted so that equal keys would be neighbours.
    checks: invariants of a row group beyond types, nulls and key uniqueness inside a part.
    whole: an invariant of all rows that share the first key column (a user's list), which are never cut
    for it, wherever a row group ends.
    made_by: the stage that writes it, named when it is missing.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...] = ()
    vector: str | None = None
    vector_type: VectorType = "float32"
    checks: tuple[Check, ...] = ()
    whole: Check | None = None
    made_by: str = "run"

    def arrow_schema(self, dim: int | None = None) -> pa.Schema:
        """The schema to write; `dim` is the length of the vector column, needed where there is one."""
        if self.vector is None:
            return self.schema
        if dim is None:
            raise ContractError(f"{self.name}: its vectors need a dimension before anything is written")
        index = self.schema.get_field_index(self.vector)
        kind = pa.binary(2 * dim) if self.vector_type == "float16" else pa.list_(pa.float32(), dim)
        return self.schema.set(index, pa.field(self.vector, kind, nullable=False))

    def conform(self, rows: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
        """`rows` with exactly `schema`, or a ContractError that prints both sides."""
        if sorted(rows.column_names) != sorted(schema.names):
            raise ContractError(
                f"{self.name}: {where} has columns {sorted(rows.column_names)}, the contract says "
                f"{sorted(schema.names)}"
            )
        try:
            out = rows.select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise ContractError(
                f"{self.name}: {where} does not fit its contract ({error}); got "
                f"[{_fields(rows.schema)}], the contract says [{_fields(schema)}]"
            ) from None
        for field in schema:
            if not field.nullable and _has_nulls(out.column(field.name)):
                raise ContractError(f"{self.name}: {where} has nulls in {field.name}, which allows none")
        for check in self.checks:
            if fault := check(out):
                raise ContractError(f"{self.name}: {where}: {fault}")
        return out


class WholeLists:
    """Holds a table's `whole` invariant over row groups that come one after the other.

    Rows of the last value of the first key column wait for the next group: a list may go on there.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._waiting: pa.Table | None = None

    def add(self, rows: pa.Table) -> None:
        """The next row group; ContractError when a list that ended in it breaks the invariant."""
        if self._table.whole is None or not len(rows):
            return
        joined = rows if self._waiting is None else pa.concat_tables([self._waiting, rows])
        column = joined.column(self._table.key[0])
        cut = pc.index(column, column[-1]).as_py()
        self._check(joined.slice(0, cut))
        self._waiting = joined.slice(cut)

    def end(self) -> None:
        """No more rows."""
        if self._waiting is not None:
            self._check(self._waiting)

    def _check(self, rows: pa.Table) -> None:
        if self._table.whole is not None and (fault := self._table.whole(rows)):
            raise ContractError(f"{self._table.name}: {fault}")


def _has_nulls(column: pa.ChunkedArray) -> bool:
    """Nulls in a column or in the lists of it."""
    if column.null_count:
        return True
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pc.list_flatten(column).null_count)


def _fields(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}{'' if field.nullable else '!'}" for field in schema)


def vectors(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A vector column as a (rows, dim) float32 matrix: without a copy where it is lists in one chunk."""
    if pa.types.is_fixed_size_binary(column.type):
        return halves(column).astype(np.float32)
    array = _one_chunk(column)
    if isinstance(array, pa.ChunkedArray):  # an empty chunked array stays one
        return np.zeros((0, array.type.list_size), np.float32)
    flat = array.flatten().to_numpy(zero_copy_only=False)
    matrix: np.ndarray = flat.reshape(len(array), array.type.list_size)
    return matrix


def halves(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of compact vectors as a (rows, dim) float16 matrix, without a copy where it is one chunk."""
    dim = vector_length(column.type)
    if not len(column):
        return np.zeros((0, dim), np.float16)
    array = _one_chunk(column)
    flat = np.frombuffer(array.buffers()[1], "<f2", len(array) * dim, array.offset * 2 * dim)
    return flat.reshape(len(array), dim)


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array; `combine_chunks` alone would copy also where there is but one."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def vector_length(kind: pa.DataType) -> int:
    """How many values a vector of a column's type has."""
    return int(kind.byte_width // 2 if pa.types.is_fixed_size_binary(kind) else kind.list_size)


def vector_column(matrix: np.ndarray, kind: VectorType = "float32") -> pa.Array:
    """A (rows, dim) matrix as an Arrow array of vectors; float32 without a copy."""
    if kind == "float16":
        compact = np.ascontiguousarray(matrix, "<f2")
        buffers = [None, pa.py_buffer(compact.data)]
        return pa.Array.from_buffers(pa.binary(2 * matrix.shape[1]), len(matrix), buffers)
    flat = np.ascontiguousarray(matrix, np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def finite(name: str) -> Check:
    """No NaN and no infinity in a float or vector column."""

    def check(rows: pa.Table) -> str | None:
        column = rows.column(name)
        values = column.to_numpy() if pa.types.is_floating(column.type) else vectors(column)
        bad = ~np.isfinite(values)
        return f"{int(bad.sum())} values of {name} are not finite" if bad.any() else None

    return check


def unit_norm(name: str, tolerance: float = 1e-3) -> Check:
    """Every vector has length 1."""

    def check(rows: pa.Table) -> str | None:
        norms = np.linalg.norm(vectors(rows.column(name)), axis=1)
        bad = np.abs(norms - 1) > tolerance
        return f"{int(bad.sum())} vectors of {name} are not of length 1" if bad.any() else None

    return check


def not_blank(name: str) -> Check:
    """No empty string."""

    def check(rows: pa.Table) -> str | None:
        blank = pc.sum(pc.equal(rows.column(name), "")).as_py() or 0
        return f"{blank} values of {name} are empty" if blank else None

    return check


def at_least(name: str, bound: int) -> Check:
    """No value below a bound."""

    def check(rows: pa.Table) -> str | None:
        least = pc.min(rows.column(name)).as_py()
        return f"{name} has {least}, below {bound}" if least is not None and least < bound else None

    return check


def one_of(name: str, allowed: tuple[str, ...]) -> Check:
    """Only values of a closed set."""

    def check(rows: pa.Table) -> str | None:
        strange = set(pc.unique(rows.column(name)).to_pylist()) - set(allowed)
        return f"{name} has {sorted(map(str, strange))}, allowed are {sorted(allowed)}" if strange else None

    return check


def ranked_lists(rows: pa.Table) -> str | None:
    """Candidate lists: as many scores as items, scores non-increasing, no −1, no repeats."""
    for nums, scores in zip(rows.column("item_nums").chunks, rows.column("scores").chunks, strict=True):
        offsets = nums.offsets.to_numpy()
        if not np.array_equal(np.diff(offsets), np.diff(scores.offsets.to_numpy())):
            return "item_nums and scores differ in length"
        row_of = np.repeat(np.arange(len(nums)), np.diff(offsets))
        flat_nums, flat_scores = nums.flatten().to_numpy(), scores.flatten().to_numpy()
        if (flat_nums < 0).any():
            return "item_nums holds a negative number"
        if not np.isfinite(flat_scores).all():
            return "scores are not all finite"
        same_row = row_of[1:] == row_of[:-1]
        if (flat_scores[1:][same_row] > flat_scores[:-1][same_row]).any():
            return "scores rise within a list"
        order = np.lexsort((flat_nums, row_of))
        repeats = (row_of[order][1:] == row_of[order][:-1]) & (flat_nums[order][1:] == flat_nums[order][:-1])
        if repeats.any():
            return "an item stands twice in a list"
    return None


def neighbour_lists(rows: pa.Table) -> str | None:
    """Relations: as many scores as items, items rising within a row, scores finite."""
    for nums, scores in zip(rows.column("item_nums").chunks, rows.column("scores").chunks, strict=True):
        offsets = nums.offsets.to_numpy()
        if not np.array_equal(np.diff(offsets), np.diff(scores.offsets.to_numpy())):
            return "item_nums and scores differ in length"
        flat = nums.flatten().to_numpy()
        row_of = np.repeat(np.arange(len(nums)), np.diff(offsets))
        if (flat < 0).any() or ((flat[1:] <= flat[:-1]) & (row_of[1:] == row_of[:-1])).any():
            return "the items of a row do not rise from 0"
        if not np.isfinite(scores.flatten().to_numpy()).all():
            return "scores are not all finite"
    return None


def dense_ranks(rows: pa.Table) -> str | None:
    """Recommendations: each user's ranks go 1, 2, … without a gap, and no item stands twice."""
    user = rows.column("user_id").combine_chunks().dictionary_encode()
    code = (user.combine_chunks() if isinstance(user, pa.ChunkedArray) else user).indices.to_numpy()
    rank = rows.column("rank").to_numpy()
    starts = np.r_[True, code[1:] != code[:-1]][: len(code)]
    expected = np.where(starts, 1, np.r_[0, rank[:-1]] + 1) if len(code) else rank
    if not np.array_equal(rank, expected):
        return "ranks of a user have a gap or do not start at 1"
    item = rows.column("item_id").combine_chunks().dictionary_encode()
    item_code = (item.combine_chunks() if isinstance(item, pa.ChunkedArray) else item).indices.to_numpy()
    pairs = np.stack([code.astype(np.int64), item_code.astype(np.int64)], axis=1)
    return None if len(np.unique(pairs, axis=0)) == len(pairs) else "an item stands twice in a user's list"


def _schema(*fields: tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]) -> pa.Schema:
    """Fields as (name, type) for non-null and (name, type, True) for nullable."""
    return pa.schema([pa.field(field[0], field[1], nullable=len(field) == 3) for field in fields])


RELATIONS = ("co_occurrence", "smoothed_text", "text", "bm25", "followers", "als", "ease")
"""Who else chose it; text as behaviour bends it; text alone; its words; what was chosen soon
after; alike in factors of implicit ALS; the linear autoencoder of the most liked items."""

TEXT, INT, LONG, FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float32()
VECTOR = pa.list_(pa.float32())

EVENTS = Table(
    "events",
    _schema(
        ("event_id", TEXT),
        ("user_id", TEXT),
        ("item_id", TEXT, True),  # a search without a click names no item
        ("scene", TEXT),
        ("event_type", TEXT),
        ("event_time", TIME),
        ("value", pa.float64(), True),
        ("query", TEXT, True),
        ("segment", TEXT, True),
        ("session_id", TEXT),
    ),
    key=("event_id",),
    checks=(not_blank("event_id"), not_blank("user_id")),
    made_by="clean_events",
)
QUARANTINE_SCHEMA = _schema(
    ("stage", TEXT), ("scene", TEXT), ("reason", TEXT), ("payload", TEXT), ("source_file", TEXT)
)
QUARANTINE = Table(
    "quarantine",
    QUARANTINE_SCHEMA,
    checks=(not_blank("reason"),),
    made_by="clean_events",
)
ITEMS_QUARANTINE = Table(
    "items_quarantine",
    QUARANTINE_SCHEMA,
    checks=(not_blank("reason"),),
    made_by="build_items",
)
EMBEDDINGS_QUARANTINE = Table(
    "embeddings_quarantine",
    QUARANTINE_SCHEMA,
    checks=(not_blank("reason"),),
    made_by="encode_items",
)
ITEMS = Table(
    "items",
    _schema(
        ("item_id", TEXT),
        ("item_num", LONG),
        ("title", TEXT),
        ("fields", pa.map_(TEXT, TEXT), True),
        ("category", TEXT, True),
        ("available", pa.bool_()),
        ("first_seen", TIME, True),
        ("updated_at", TIME, True),
    ),
    key=("item_id",),
    checks=(not_blank("item_id"), at_least("item_num", 0)),
    made_by="build_items",
)
ITEM_TEXT = Table(
    "item_text",
    # image: path, URI or data: URI of the item's picture; text_hash is then of both, and changes with either.
    _schema(
        ("item_id", TEXT), ("item_num", LONG), ("text", TEXT), ("text_hash", TEXT), ("image", TEXT, True)
    ),
    key=("item_id",),
    checks=(not_blank("text"), at_least("item_num", 0)),
    made_by="build_items",
)
ITEM_EMBEDDINGS = Table(
    "item_embeddings",
    _schema(("item_id", TEXT), ("text_hash", TEXT), ("embedding", VECTOR)),
    key=("item_id",),
    vector="embedding",
    checks=(finite("embedding"), unit_norm("embedding")),
    made_by="encode_items",
)
QUERY_TEXT = Table(
    "query_text",
    # What users wrote, each text once: row i of the whole table is text_num i of user_texts.
    _schema(("text", TEXT), ("text_hash", TEXT)),
    key=("text_hash",),
    checks=(not_blank("text"),),
    made_by="weigh_events",
)
QUERY_EMBEDDINGS = Table(
    "query_embeddings",
    _schema(("text_hash", TEXT), ("embedding", VECTOR)),
    key=("text_hash",),
    vector="embedding",
    checks=(finite("embedding"), unit_norm("embedding")),
    made_by="encode_queries",
)
QUERIES_QUARANTINE = Table(
    "queries_quarantine",
    QUARANTINE_SCHEMA,
    checks=(not_blank("reason"),),
    made_by="encode_queries",
)
QUERY_VECTORS = Table(
    "query_vectors",
    # In the space of item_vectors, by the transform fitted on items: unit length, or 0 for a text that could
    # not be encoded. Row i is text_num i.
    _schema(("text_hash", TEXT), ("vector", VECTOR)),
    key=("text_hash",),
    vector="vector",
    checks=(finite("vector"),),
    made_by="learn_taste",
)
USERS = Table(
    "users",
    _schema(
        ("user_id", TEXT),
        ("segment", TEXT, True),
        ("n_events", LONG),
        ("n_items", LONG),
        ("last_event_time", TIME, True),
    ),
    key=("user_id",),
    checks=(not_blank("user_id"),),
    made_by="weigh_events",
)
INTERACTIONS = Table(
    "interactions",
    _schema(
        ("user_id", TEXT),
        ("item_num", LONG),
        ("weight", LONG),  # fixed point, WEIGHT_ONE is 1.0; below 0 where negative events prevail
        ("strength", LONG),  # the same sum before it fades: what a later half-life starts from
        ("n_events", INT),
        ("last_event_time", TIME),
        ("first_liked", TIME, True),  # null where no event spoke for the item
        ("last_liked", TIME, True),
        ("in_profile", pa.bool_()),  # within the history cap; a row outside it still counts as seen
    ),
    key=("user_id", "item_num"),
    checks=(at_least("item_num", 0),),
    made_by="weigh_events",
)
WORDS = ("query", "review", "interests")
"""What a user's text is: a search, a review, or what they said they like before they did anything."""

USER_TEXTS = Table(
    "user_texts",
    _schema(
        ("user_id", TEXT),
        ("kind", TEXT),
        ("text_num", LONG),
        ("strength", LONG),  # fixed point: the weights of its events times what words count, not faded
        ("last_event_time", TIME, True),  # null where it does not fade: stated interests
    ),
    key=("user_id", "kind", "text_num"),
    checks=(one_of("kind", WORDS), at_least("text_num", 0)),
    made_by="weigh_events",
)
EVERYONE = ""
"""The segment that all users belong to."""
POPULARITY = Table(
    "popularity",
    _schema(("segment", TEXT), ("rank", INT), ("item_num", LONG), ("weight", LONG)),
    key=("segment", "rank"),
    made_by="weigh_events",
)
ITEM_VECTORS = Table(
    "item_vectors",
    # The vector's direction is what the item is about, its length (norm) how much it counts now.
    _schema(("item_id", TEXT), ("item_num", LONG), ("vector", VECTOR), ("norm", FLOAT)),
    key=("item_id",),
    vector="vector",
    checks=(finite("vector"), finite("norm"), at_least("item_num", 0)),
    made_by="learn_taste",
)
CO_OCCURRENCE = Table(
    "co_occurrence",
    # Row h: the items that users of item h like too, by cosine.
    _schema(("item_num", LONG), ("item_nums", pa.list_(pa.int32())), ("scores", pa.list_(FLOAT))),
    key=("item_num",),
    checks=(at_least("item_num", 0), neighbour_lists),
    made_by="relate_items",
)
NEIGHBOURS = Table(
    "neighbours",
    # Row h of a relation: what having chosen item h says for the items named; a score below 0 speaks against.
    _schema(
        ("relation", TEXT),
        ("item_num", LONG),
        ("item_nums", pa.list_(pa.int32())),
        ("scores", pa.list_(FLOAT)),
    ),
    key=("relation", "item_num"),
    checks=(one_of("relation", RELATIONS), at_least("item_num", 0), neighbour_lists),
    made_by="learn_taste",
)
BLEND = Table(
    "blend",
    _schema(("from_items", LONG), ("name", TEXT), ("value", pa.float64(), True)),  # null: without a half-life
    key=("from_items", "name"),
    checks=(at_least("from_items", 0),),
    made_by="fit_blend",
)
ITEM_SIGNALS = Table(
    "item_signals",
    _schema(("item_num", LONG), ("popularity", FLOAT), ("freshness", FLOAT), ("cold", pa.bool_())),
    key=("item_num",),
    checks=(finite("popularity"), finite("freshness"), at_least("item_num", 0)),
    made_by="fit_blend",
)
USER_VECTORS = Table(
    "user_vectors",
    _schema(
        ("user_id", TEXT),
        ("interest", INT),
        ("vector", VECTOR),
        ("importance", FLOAT),
        ("n_events", LONG),
        ("last_event_time", TIME, True),  # null for users of whom only stated interests are known
    ),
    key=("user_id", "interest"),
    vector="vector",
    checks=(finite("vector"), finite("importance"), unit_norm("vector")),
    made_by="aggregate_users",
)
INDEX_SHARDS = Table(
    "index_shards",
    _schema(
        ("shard", INT),
        ("file", TEXT),
        ("n_vectors", LONG),
        ("factory", TEXT),
        ("metric", TEXT),
        ("sha256", TEXT),
    ),
    key=("shard",),
    made_by="build_index",
)
CANDIDATES = Table(
    "candidates",
    _schema(("user_id", TEXT), ("source", TEXT), ("item_nums", pa.list_(LONG)), ("scores", pa.list_(FLOAT))),
    key=("user_id", "source"),
    checks=(ranked_lists,),
    made_by="retrieve",
)
SOURCES = ("personal", "popular_segment", "popular", "interests")
"""Where a recommended row comes from: what the user did (items, searches, reviews), their segment's taste,
everybody's, or only what a user who did nothing yet said they like."""

RECOMMENDATIONS = Table(
    "recommendations",
    _schema(
        ("user_id", TEXT),
        ("rank", INT),
        ("item_id", TEXT),
        ("score", FLOAT),
        ("source", TEXT),
        ("reason", pa.list_(pa.struct([pa.field("item_id", TEXT), pa.field("share", FLOAT)]))),
    ),
    key=("user_id", "rank"),
    checks=(finite("score"), one_of("source", SOURCES)),
    whole=dense_ranks,
    made_by="rank",
)
TRUTH = Table(
    "truth",
    # new_scene: chosen only in scenes in which the user, known from others, had never been seen before t0
    _schema(("user_id", TEXT), ("item_num", LONG), ("new_scene", pa.bool_())),
    key=("user_id", "item_num"),
    checks=(at_least("item_num", 0),),
    made_by="evaluate",
)
GROUPS = ("warm", "cold", "unknown")
"""Users with a history before t0; known without one; not known before t0, so without a list."""

TARGETS = ("all", "cold_items", "new_scene", "warm_items")
"""Which part of a user's truth a row is measured on: items with an interaction before t0 are warm."""

USER_METRICS = Table(
    "user_metrics",
    # accuracy and about_list are in the order of the names in the manifest's metrics; about_list and
    # item_nums (the list itself) stand in the row of all truth alone.
    _schema(
        ("user_id", TEXT),
        ("method", TEXT),
        ("target", TEXT),
        ("group", TEXT),
        ("n_history", LONG),
        ("n_truth", LONG),
        ("accuracy", pa.list_(pa.float64())),
        ("about_list", pa.list_(pa.float64())),  # NaN where it has no value, such as diversity of one item
        ("item_nums", pa.list_(LONG)),
    ),
    key=("user_id", "method", "target"),
    checks=(one_of("group", GROUPS), one_of("target", TARGETS)),
    made_by="evaluate",
)
METRICS = Table(
    "user_metrics",
    _schema(
        ("user_id", TEXT),
        ("method", TEXT),
        ("group", TEXT),
        ("n_truth", LONG),
        ("values", pa.list_(pa.float64())),  # in the order of the manifest's metrics.names
    ),
    key=("user_id", "method"),
    checks=(one_of("group", GROUPS),),
    made_by="evaluate",
)
RATINGS = Table(
    "ratings",
    # The newest rating of each pair: those before t0, and those of the days after it (held). als: what
    # Spark's ALS predicts for a held one whose user and item it knows.
    _schema(
        ("user_id", TEXT),
        ("item_num", LONG),
        ("value", pa.float64()),
        ("rated_at", TIME),
        ("held", pa.bool_()),
        ("als", pa.float64(), True),
    ),
    key=("user_id", "item_num"),
    checks=(finite("value"), at_least("item_num", 0)),
    made_by="evaluate",
)
PREDICTED_RATINGS = Table(
    "predicted_ratings",
    _schema(
        ("user_id", TEXT),
        ("item_num", LONG),
        ("value", pa.float64()),
        ("known_user", pa.bool_()),  # with a rating before t0
        ("known_item", pa.bool_()),
        ("predicted", pa.list_(pa.float64())),  # in the order of the manifest's metrics.rating_methods
    ),
    key=("user_id", "item_num"),
    made_by="evaluate",
)
METRICS = Table(
    "metrics",
    _schema(
        ("name", TEXT),
        ("slice", TEXT),
        ("value", pa.float64()),
        ("low", pa.float64(), True),
        ("high", pa.float64(), True),
        ("unit", TEXT, True),
    ),
    key=("name", "slice"),
    checks=(finite("value"),),
    made_by="publish",
)

TABLES: tuple[Table, ...] = (
    EVENTS,
    QUARANTINE,
    ITEMS,
    ITEM_TEXT,
    ITEMS_QUARANTINE,
    ITEM_EMBEDDINGS,
    EMBEDDINGS_QUARANTINE,
    USERS,
    INTERACTIONS,
    POPULARITY,
    USER_TEXTS,
    QUERY_TEXT,
    QUERY_EMBEDDINGS,
    QUERIES_QUARANTINE,
    ITEM_VECTORS,
    QUERY_VECTORS,
    CO_OCCURRENCE,
    NEIGHBOURS,
    BLEND,
    ITEM_SIGNALS,
    USER_VECTORS,
    INDEX_SHARDS,
    CANDIDATES,
    RECOMMENDATIONS,
    TRUTH,
    USER_METRICS,
    RATINGS,
    PREDICTED_RATINGS,
    METRICS,
)


def table_named(name: str) -> Table:
    """The contract of a table by its name; ContractError lists the known ones."""
    for table in TABLES:
        if table.name == name:
            return table
    raise ContractError(f"there is no table {name!r}; known: {', '.join(table.name for table in TABLES)}")
