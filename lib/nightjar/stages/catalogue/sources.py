"""The Spark half of build_items: sources and triples -> one row an item, and the number each one gets.

Nothing is sorted in one place: the first id of every part is found on ids alone, then each wide row is
shuffled once, to its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from nightjar.config import BuildItems, ItemSource, Triples
from nightjar.engines.raw import ROW, SOURCE, UNREADABLE, RawGroup, mapping, quoted_name
from nightjar.stages.cleaning.cells import BAD_LETTERS, bad_id, external_id, instant, not_an_item, text, truth

TEXTS = ("title", "description", "category")
IMAGE = "image"
OUTSIDE = "data:,outside"
"""What stands for a path that would leave its folder: no picture, so it goes to quarantine as one."""
REJECTS = ("scene", "reason", "payload", "source_file")
IDS_A_BUCKET = 2_000_000
"""Ids sorted by one task while numbers are given out; narrow rows, about 100 MB."""


@dataclass(frozen=True)
class Limits:
    """What bounds a row. max_id_chars: longest legal id; max_cell_chars: what of a text is worth carrying to
    the template; end_micros: end of ds, a row updated at or after it is not known yet.
    """

    max_id_chars: int
    max_cell_chars: int
    end_micros: int

    @classmethod
    def of(cls, params: BuildItems, max_id_chars: int, end: datetime) -> Limits:
        # Entities and tags shrink a text, seldom to less than a quarter.
        return cls(max_id_chars, max(4 * params.max_chars, 4096), round(end.timestamp() * 1e6))


def field_names(params: BuildItems) -> list[str]:
    """Names of the further fields of all sources, sorted."""
    return sorted({name for source in params.sources for name in source.fields})


def wanted(source: ItemSource, fields: Sequence[str]) -> dict[str, str]:
    """What to read of a source's files, as SQL."""
    own = {field_column(fields.index(name)): quoted_name(column) for name, column in source.fields.items()}
    given = mapping(source)
    if (picture := given.pop("image_bytes", None)) is not None:
        # A binary column comes as text of the same bytes; some releases of Spark break base64 into lines.
        given[IMAGE] = f"concat('data:;base64,', translate(base64({picture}), '\\r\\n', ''))"
    return {**given, **own}


def field_column(at: int) -> str:
    """The column of field number `at`: a field's own name may hold letters that Spark reads as syntax."""
    return f"field_{at}"


def judge_item(
    group: RawGroup, source: ItemSource, name: str, fields: Sequence[str], limits: Limits
) -> DataFrame:
    """Raw rows of one layout -> cleaned columns, REJECTS among them; `reason` is null for a good row."""
    given = wanted(source, fields)

    def cell(column: str) -> Column:
        found = F.col(column) if column in given else F.lit(None).cast("string")
        # A column of pandas that is missing everywhere is one of NaN.
        return external_id(text(F.substring(found, 1, limits.max_cell_chars)))

    def moment(column: str) -> Column:
        return instant(column, source.time) if column in given else F.lit(None).cast("bigint")

    cleaned = group.frame.select(
        external_id(text(F.col("item_id"))).alias("item_id"),
        *(cell(column).alias(column) for column in (*TEXTS, *map(field_column, range(len(fields))))),
        _image(source, given).alias(IMAGE),
        truth(cell("available")).alias("available"),
        moment("first_seen").alias("first_seen"),
        moment("updated_at").alias("updated_at"),
        *(ROW, SOURCE, UNREADABLE),
    )
    no_item = not_an_item(source.not_items, source.not_items_sql, cleaned)
    unborn = F.coalesce(F.col("updated_at") >= limits.end_micros, F.lit(False))
    reasons = [*_id_reasons(limits), (no_item, "not_an_item"), (unborn, "future")]
    return _judged(cleaned, group, name, reasons)


def _image(source: ItemSource, given: dict[str, str]) -> Column:
    """Where an item's picture is: inside `image_root`, or in the row itself as a data: URI; else null."""
    if IMAGE not in given:
        return F.lit(None).cast("string")
    place = text(F.col(IMAGE))
    if source.image_root is None:  # bytes; of a row without any, base64 leaves nothing
        return F.when(~place.endswith("base64,"), place)
    root = source.image_root.rstrip("/") + "/"
    leaves = place.rlike(r"(^|/)\.\.(/|$)") | place.rlike(BAD_LETTERS)
    inside = F.when(place.startswith(root), place).otherwise(F.concat(F.lit(root), place))
    return F.when(leaves, F.lit(OUTSIDE)).otherwise(inside)


def judge_triple(group: RawGroup, name: str, limits: Limits) -> DataFrame:
    """Raw rows of one layout of triples -> item_id, relation, entity and REJECTS."""

    def cell(column: str) -> Column:
        return text(F.substring(F.col(column), 1, limits.max_cell_chars)).alias(column)

    item = external_id(text(F.col("item_id"))).alias("item_id")
    cleaned = group.frame.select(item, cell("relation"), cell("entity"), ROW, SOURCE, UNREADABLE)
    empty = F.col("relation").isNull() | F.col("entity").isNull()
    return _judged(cleaned, group, name, [*_id_reasons(limits), (empty, "missing_value")])


def _id_reasons(limits: Limits) -> list[tuple[Column, str]]:
    item = F.col("item_id")
    return [
        (F.col(UNREADABLE), "unreadable"),
        (item.isNull(), "missing_item"),
        (bad_id(item, limits.max_id_chars), "bad_id"),
    ]


def _judged(
    cleaned: DataFrame, group: RawGroup, name: str, reasons: Sequence[tuple[Column, str]]
) -> DataFrame:
    """Adds REJECTS; the first reason that holds wins."""
    reason = F.lit(None).cast("string")
    for holds, word in reversed(reasons):
        reason = F.when(holds, F.lit(word)).otherwise(reason)
    judged = cleaned.withColumn("reason", reason)
    payload = F.when(F.col("reason").isNotNull(), F.coalesce(group.payload, F.lit("")))
    return judged.select(
        "*", F.lit(name).alias("scene"), payload.alias("payload"), F.col(SOURCE).alias("source_file")
    ).drop(ROW, SOURCE, UNREADABLE)


def picked(rows: DataFrame, source: ItemSource, fields: Sequence[str]) -> DataFrame:
    """One row an item of one source: `latest` or `most_frequent`, and `n_rows` it was picked from.

    Ties go to the row that is largest in all columns, so that the choice never depends on order.
    """
    columns = columns_of(fields)
    order = ["updated_at", *(column for column in columns if column != "updated_at")]
    newest = F.max(F.struct(*order))
    if source.pick == "latest":
        best = rows.groupBy("item_id").agg(newest.alias("best"), F.count("*").alias("n_rows"))
        return best.select("item_id", "n_rows", "best.*")
    titles = rows.groupBy("item_id", "title").agg(newest.alias("best"), F.count("*").alias("n"))
    # A row without a title says nothing about which title is common.
    votes = F.struct(F.col("title").isNotNull(), F.col("n"), F.col("best"))
    won = titles.groupBy("item_id").agg(F.max(votes).alias("won"), F.sum("n").alias("n_rows"))
    return won.select("item_id", "n_rows", "won.best.*")


def merged(sources: Sequence[DataFrame], fields: Sequence[str]) -> DataFrame:
    """All items of all sources: each field from the earliest source that has it, `n_rows_i` from source i."""
    columns = columns_of(fields)
    numbered = [frame.withColumn("_source", F.lit(at)) for at, frame in enumerate(sources)]
    together = numbered[0]
    for frame in numbered[1:]:
        together = together.unionByName(frame)
    firsts = (_first(column).alias(column) for column in columns)
    counts = (
        F.sum(F.when(F.col("_source") == at, F.col("n_rows"))).alias(f"n_rows_{at}")
        for at in range(len(sources))
    )
    found = together.groupBy("item_id").agg(*firsts, *counts)
    values = (F.col(f"{column}.value").alias(column) for column in columns)
    return found.select("item_id", *values, *(f"n_rows_{at}" for at in range(len(sources))))


def _first(column: str) -> Column:
    value = F.col(column).alias("value")
    return F.min(F.when(F.col(column).isNotNull(), F.struct(F.col("_source"), value)))


def columns_of(fields: Sequence[str]) -> list[str]:
    """The columns of a cleaned item beside its id."""
    own = map(field_column, range(len(fields)))
    return [*TEXTS, IMAGE, *own, "available", "first_seen", "updated_at"]


def facts(triples: DataFrame, source: Triples, at: int) -> DataFrame:
    """Triples of one source by item and relation: how many rows, how many distinct, and the text.

    Entities stand in byte order, at most `max_per_relation`; `place` orders the relations in the text.
    """
    grouped = triples.groupBy("item_id", "relation").agg(
        F.count("*").alias("n_rows"), F.sort_array(F.collect_set("entity")).alias("entities")
    )
    shown = F.array_join(F.slice("entities", 1, source.max_per_relation), ", ")
    place = F.lit(0)
    if source.relations:
        for number, relation in enumerate(source.relations, 1):
            place = F.when(F.col("relation") == relation, F.lit(number)).otherwise(place)
    listed = (place > 0) if source.relations else F.lit(True)
    return grouped.select(
        "item_id",
        "n_rows",
        F.size("entities").alias("n_distinct"),
        listed.alias("listed"),
        F.struct(
            F.lit(at).alias("source"),
            place.alias("place"),
            F.col("relation"),
            F.concat(F.col("relation"), F.lit(": "), shown).alias("words"),
        ).alias("fact"),
    )


def knowledge(found: DataFrame) -> DataFrame:
    """One text an item from its facts: `relation: a, b; relation: c`."""
    listed = (
        found.filter("listed").groupBy("item_id").agg(F.sort_array(F.collect_list("fact")).alias("facts"))
    )
    return listed.select("item_id", F.array_join(F.col("facts.words"), "; ").alias("knowledge"))


def first_events(events: DataFrame) -> DataFrame:
    """Items of the log and the time of their first event, in microseconds."""
    named = events.filter(F.col("item_id").isNotNull())
    return named.groupBy("item_id").agg(F.min(F.unix_micros("event_time")).alias("first_event"))


def part_starts(ids: DataFrame, n_items: int, rows_per_part: int, bucket: int = IDS_A_BUCKET) -> list[str]:
    """The first id of every part but the first, when ids in byte order are cut every `rows_per_part`.

    Exact at any size: ids are put into ordered buckets, counted, and numbered inside their bucket.
    """
    if n_items <= rows_per_part:
        return []
    bounds = _bucket_bounds(ids, n_items, bucket)
    placed = ids.select("item_id", _place(bounds).alias("bucket"))
    offsets, before = [], 0
    sizes = {
        row["bucket"]: row["n"] for row in placed.groupBy("bucket").agg(F.count("*").alias("n")).collect()
    }
    for at in range(len(bounds) + 1):
        offsets.append(before)
        before += sizes.get(at, 0)
    inside = F.row_number().over(Window.partitionBy("bucket").orderBy("item_id"))
    offset = F.element_at(F.array(*map(F.lit, offsets)), F.col("bucket") + 1)
    numbered = placed.withColumn("num", inside + offset - 1)
    starts = numbered.filter((F.col("num") % rows_per_part == 0) & (F.col("num") > 0))
    return [row["item_id"] for row in starts.orderBy("num").collect()]


def _bucket_bounds(ids: DataFrame, n_items: int, bucket: int) -> list[str]:
    """Ids that cut all ids into buckets of about `bucket`, from a sample chosen by hash, never by chance."""
    n_buckets = -(-n_items // bucket)
    if n_buckets == 1:
        return []
    one_in = max(1, n_items // (n_buckets * 100))
    chosen = ids.filter(F.pmod(F.xxhash64("item_id"), F.lit(one_in)) == 0).collect()
    sample = sorted((row["item_id"] for row in chosen), key=str.encode)
    cuts = (sample[at * len(sample) // n_buckets] for at in range(1, n_buckets) if sample)
    return sorted(set(cuts), key=str.encode)


def _place(bounds: Sequence[str]) -> Column:
    """How many of the sorted bounds are at or below item_id: 0…len(bounds).

    Two levels of about √n comparisons each, since Spark has no binary search over an array.
    """
    if not bounds:
        return F.lit(0)
    width = max(1, int(len(bounds) ** 0.5))
    blocks = [bounds[at : at + width] for at in range(0, len(bounds), width)]
    heads = _at_or_below(F.array(*(F.lit(block[0]) for block in blocks)))
    inner = F.array(*(F.array(*map(F.lit, block)) for block in blocks))
    return F.when(heads == 0, F.lit(0)).otherwise(
        (heads - 1) * width + _at_or_below(F.element_at(inner, F.greatest(heads, F.lit(1))))
    )


def _at_or_below(bounds: Column) -> Column:
    return F.size(F.filter(bounds, lambda bound: bound <= F.col("item_id")))


def to_parts(rows: DataFrame, starts: Sequence[str], n_tasks: int | None) -> DataFrame:
    """Rows with their `part`, each part whole in one task and sorted by id."""
    n_parts = len(starts) + 1
    placed = rows.withColumn("part", _place(starts).cast("int"))
    return placed.repartition(min(n_parts, n_tasks or n_parts), "part").sortWithinPartitions(
        "part", "item_id"
    )
