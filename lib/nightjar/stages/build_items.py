"""Item metadata and knowledge -> items, their texts, and quarantine.

Rows of a source are judged, one row an item is picked, sources are joined field by field with the earlier one
winning, knowledge triples become words, and items are numbered 0…n−1 in the byte order of their ids. Reasons,
the first that holds: unreadable, missing_item, bad_id, not_an_item; of triples: unreadable, missing_item,
bad_id, missing_value. Rows that lost to another row of their item are counted as duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from nightjar.config import BuildItems, Files, Resources
from nightjar.engines.outcome import Counts, write_several
from nightjar.engines.raw import RawTable, lenient, mapping, open_raw, unite
from nightjar.engines.spark import read, session, spark_errors
from nightjar.errors import ConfigError, ContractError, InputError
from nightjar.kernels import text as kernel
from nightjar.stage import Metrics, Night
from nightjar.stages.catalogue import sources as catalogue
from nightjar.stages.catalogue.parts import NO_TEXT, UNAVAILABLE, Composer, WriteItems, WriteRejects
from nightjar.stages.catalogue.sources import REJECTS, Limits
from nightjar.stages.cleaning.cells import check_clock
from nightjar.tables import EVENTS, ITEM_TEXT, ITEMS, ITEMS_QUARANTINE

QUARANTINE_PARTS = 4


@dataclass(frozen=True)
class Judged:
    """All raw rows of the stage, judged. names[i] is the name of rows[i]: source0 …, triples0 …."""

    names: tuple[str, ...]
    rows: tuple[DataFrame, ...]
    n_raw: tuple[int, ...]

    def good(self, prefix: str) -> list[DataFrame]:
        """The rows of each source that were not rejected, in order."""
        pairs = zip(self.names, self.rows, strict=True)
        return [rows.filter(F.col("reason").isNull()) for name, rows in pairs if name.startswith(prefix)]


def build_items(night: Night, params: BuildItems, resources: Resources) -> Metrics:
    """Runs the stage; returns counts in all and for each source.

    Raises InputError for unreadable files or when no item is left, ConfigError for a template or SQL that
    cannot be used, ContractError when counts do not balance.
    """
    composer = _composer(params)
    spark = session(night.config)
    with spark_errors("items"):
        with lenient(spark):
            judged = _judge(spark, night, params)
        rejected = _write_rejects(night, judged)
        found, facts = _catalogue(spark, night, params, judged)
        found, facts = found.persist(), facts.persist() if facts is not None else None
        try:
            metrics = _counts(params, judged, rejected, found, facts)
            metrics |= _write_items(night, params, resources, composer, found, metrics["items"])
        finally:
            found.unpersist()
            if facts is not None:
                facts.unpersist()
    return metrics


def _composer(params: BuildItems) -> Composer:
    fields = tuple(catalogue.field_names(params))
    pieces = kernel.parse(params.template)
    known = {"title", "description", "category", "knowledge", "item_id", *fields}
    if strange := sorted({piece.name for piece in pieces} - known):
        raise ConfigError(
            f"build_items.template names {', '.join(strange)}, which no source has; known: "
            f"{', '.join(sorted(known))}; add it to a source's `fields`"
        )
    return Composer(pieces, fields, params.max_chars)


def _judge(spark: SparkSession, night: Night, params: BuildItems) -> Judged:
    limits = Limits.of(params, night.config.clean_events.max_id_chars, night.end)
    fields = catalogue.field_names(params)
    names, rows, n_raw = [], [], []
    for at, source in enumerate(params.sources):
        name = f"source{at}"
        check_clock(spark, source.time, f"build_items.sources.{at}")
        table = _open(spark, night, name, source)
        groups = table.groups(catalogue.wanted(source, fields))
        frames = [catalogue.judge_item(group, source, name, fields, limits) for group in groups]
        names.append(name)
        rows.append(_together(frames, table, name))
        n_raw.append(table.count())
    for at, triples in enumerate(params.triples):
        name = f"triples{at}"
        table = _open(spark, night, name, triples)
        frames = [catalogue.judge_triple(group, name, limits) for group in table.groups(mapping(triples))]
        names.append(name)
        rows.append(_together(frames, table, name))
        n_raw.append(table.count())
    return Judged(tuple(names), tuple(rows), tuple(n_raw))


def _open(spark: SparkSession, night: Night, name: str, files: Files) -> RawTable:
    found = night.raw["items_raw"][name]
    return open_raw(spark, files, found, f"build_items {name}", ("item_id", "relation", "entity"))


def _together(frames: Sequence[DataFrame], table: RawTable, name: str) -> DataFrame:
    united = unite(frames)
    if united is None:
        raise InputError(f"{table.where}: all files are empty; check the path of {name}")
    return united


def _write_rejects(night: Night, judged: Judged) -> Counts:
    rows = unite(frame.filter(F.col("reason").isNotNull()).select(*REJECTS) for frame in judged.rows)
    assert rows is not None  # a configuration without a source is refused
    placed = rows.repartition(QUARANTINE_PARTS, "payload").sortWithinPartitions(*REJECTS)
    attempt = night.write(ITEMS_QUARANTINE)
    result = write_several(placed, WriteRejects(attempt), {attempt: QUARANTINE_PARTS})
    night.wrote(ITEMS_QUARANTINE, result.files[ITEMS_QUARANTINE.name])
    return result.counts


def _catalogue(
    spark: SparkSession, night: Night, params: BuildItems, judged: Judged
) -> tuple[DataFrame, DataFrame | None]:
    """One row an item, those only the log names among them (`listed` is false), and the facts."""
    fields = catalogue.field_names(params)
    pairs = zip(judged.good("source"), params.sources, strict=True)
    picked = [catalogue.picked(rows, source, fields) for rows, source in pairs]
    items = catalogue.merged(picked, fields).withColumn("listed", F.lit(True))
    firsts = catalogue.first_events(read(spark, night.window(EVENTS)))
    items = items.join(firsts, "item_id", "full_outer")
    triples = zip(judged.good("triples"), params.triples, strict=True)
    facts = unite(catalogue.facts(rows, source, at) for at, (rows, source) in enumerate(triples))
    if facts is None:
        items = items.withColumn("knowledge", F.lit(None).cast("string"))
    else:
        items = items.join(catalogue.knowledge(facts), "item_id", "left")
    # An item announced for a later day is in the catalogue and cannot be had yet.
    here = F.coalesce(F.col("first_seen") < round(night.end.timestamp() * 1e6), F.lit(True))
    items = items.withColumn("available", F.coalesce("available", F.lit(True)) & here)
    seen = F.coalesce("first_seen", "first_event")
    return items.withColumn("listed", F.coalesce("listed", F.lit(False))).withColumn(
        "first_seen", seen
    ), facts


def _counts(
    params: BuildItems, judged: Judged, rejected: Counts, found: DataFrame, facts: DataFrame | None
) -> dict[str, Any]:
    """Counts of items, sources and triples; ContractError unless every raw row is accounted for."""
    n_sources = len(params.sources)
    sums = (F.sum(f"n_rows_{at}") for at in range(n_sources))
    kept = (F.count(f"n_rows_{at}") for at in range(n_sources))
    listed, total, *rest = found.agg(F.count_if("listed"), F.count("*"), *sums, *kept).collect()[0]
    sources: dict[str, Any] = {}
    for at, (name, n_raw) in enumerate(zip(judged.names, judged.n_raw, strict=True)):
        quarantine = {key[1]: n for key, n in sorted(rejected.items()) if key[0] == name}
        if name.startswith("source"):
            good, n_items = rest[at] or 0, rest[n_sources + at]
            sources[name] = {"raw": n_raw, "items": n_items, "duplicates": good - n_items}
        else:
            assert facts is not None
            good, distinct, unlisted = _fact_counts(facts, at - n_sources)
            duplicates = good - distinct - unlisted
            sources[name] = {"raw": n_raw, "facts": distinct, "duplicates": duplicates, "unlisted": unlisted}
        sources[name]["quarantine"] = quarantine
        if good + sum(quarantine.values()) != n_raw:
            raise ContractError(
                f"build_items: {name} has {n_raw} rows, but {good} were used and {quarantine} rejected; were "
                "its files changed meanwhile? run the same command again"
            )
    unknown = total - listed
    n_items = total if params.unknown_items == "keep" else listed
    return {"items": n_items, "unknown_items": unknown, "sources": sources}


def _fact_counts(facts: DataFrame, at: int) -> tuple[int, int, int]:
    """(rows, distinct triples of listed relations, rows of relations not listed) of one source of triples."""
    here = facts.filter(F.col("fact.source") == at)
    distinct = F.sum(F.when(F.col("listed"), F.col("n_distinct")))
    unlisted = F.sum(F.when(~F.col("listed"), F.col("n_rows")))
    row = here.agg(F.sum("n_rows"), distinct, unlisted).collect()[0]
    return row[0] or 0, row[1] or 0, row[2] or 0


def _write_items(
    night: Night, params: BuildItems, resources: Resources, composer: Composer, found: DataFrame, n_items: int
) -> dict[str, int]:
    rows = found if params.unknown_items == "keep" else found.filter("listed")
    if not n_items:
        raise InputError("build_items: no item is left; see the reasons in items_quarantine's counts")
    starts = catalogue.part_starts(rows.select("item_id"), n_items, params.rows_per_part)
    wide = rows.select("item_id", "knowledge", *catalogue.columns_of(composer.fields))
    placed = catalogue.to_parts(wide, starts, resources.parts)
    items, texts = night.write(ITEMS), night.write(ITEM_TEXT)
    task = WriteItems(items, texts, composer, (n_items, params.rows_per_part))
    n_parts = len(starts) + 1
    result = write_several(placed, task, {items: n_parts, texts: n_parts})
    night.wrote(ITEMS, result.files[ITEMS.name])
    night.wrote(ITEM_TEXT, result.files[ITEM_TEXT.name])
    return {name: result.counts[(name,)] for name in (NO_TEXT, UNAVAILABLE)}
