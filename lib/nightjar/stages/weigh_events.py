"""Events -> weighted interactions, known users, recent popularity, and what users wrote (user_texts.py).

Weight of an event: its type's weight × its scene's weight × what its value says × 2^(−age / half-life), age
counted back from the user's own newest event; negative kinds subtract. A list compares items for one user, so
where the age starts changes nothing but that nobody's weights fade to nothing. Weights are fixed-point
integers, so that sums do not depend on the order in which Spark adds them.
"""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from nightjar.config import CleanEvents, Resources, WeighEvents
from nightjar.engines import raw, spark
from nightjar.stage import Metrics, Night
from nightjar.stages.cleaning.cells import BAD_LETTERS, text
from nightjar.stages.cleaning.forgotten import forgotten_users
from nightjar.stages.users.texts import Wordings, write_user_texts
from nightjar.tables import EVENTS, EVERYONE, INTERACTIONS, ITEMS, POPULARITY, USERS, WEIGHT_ONE

CONTROL = r"[\x00-\x1f\x7f]"


def weigh_events(night: Night, params: WeighEvents, resources: Resources) -> Metrics:
    """Writes interactions and users bucketed alike, and popularity; metrics count what was left out."""
    del resources
    session = spark.session(night.config)
    forgotten = forgotten_users(session, night)
    events = _remembered(spark.read(session, night.window(EVENTS)), forgotten)
    items = spark.read(session, night.read(ITEMS))
    known = events.join(items.select("item_id", "item_num"), "item_id")
    newest = F.max("event_time").over(Window.partitionBy("user_id"))
    cleaning = night.config.clean_events
    weighed = known.withColumn("newest", newest).select(
        "*",
        event_weight(cleaning, params, F.col("newest")).alias("weight"),
        event_weight(cleaning, params, F.col("newest"), faded=False).alias("strength"),
    )
    liked = F.when(F.col("weight") > 0, F.col("event_time"))
    pairs = weighed.groupBy("user_id", "item_num").agg(
        F.sum("weight").alias("weight"),
        F.sum("strength").alias("strength"),
        F.count("*").cast("int").alias("n_events"),
        F.max("event_time").alias("last_event_time"),
        F.min(liked).alias("first_liked"),
        F.max(liked).alias("last_liked"),
    )
    pairs = pairs.persist()
    declared = _declared_users(session, night)
    declared = _remembered(declared, forgotten) if declared is not None else None
    people = known_users(events, pairs, declared).persist()
    try:
        written = spark.write(
            interactions(pairs, params.history_cap),
            night.write(INTERACTIONS),
            params.user_parts,
            ("user_id", "item_num"),
        )
        night.wrote(INTERACTIONS, written)
        night.wrote(USERS, spark.write(people, night.write(USERS), params.user_parts, ("user_id",)))
        popular = popularity(pairs, people, items.filter("available"), params, night.end)
        night.wrote(
            POPULARITY, spark.write(popular.repartition(1), night.write(POPULARITY), 1, ("segment", "rank"))
        )
        strength = event_weight(cleaning, params, F.col("newest"), faded=False)
        texts = write_user_texts(session, night, params, Wordings(events, strength, declared))
        return {**_counts(events, pairs, people), **texts}
    finally:
        pairs.unpersist()
        people.unpersist()


def _remembered(rows: DataFrame, forgotten: DataFrame | None) -> DataFrame:
    """Rows of users who are not to be forgotten; nights cleaned before the request still hold theirs."""
    return rows if forgotten is None else rows.join(forgotten, "user_id", "left_anti")


def event_weight(cleaning: CleanEvents, params: WeighEvents, newest: Column, faded: bool = True) -> Column:
    """The fixed-point weight of an event over scene, event_type, value and its age before `newest`.

    However old, an event that says something weighs at least one unit: what was liked stays liked. faded:
    False leaves out the half-life that all scenes share; what a scene forgets sooner stays forgotten.
    """
    age_days = (F.unix_micros(newest) - F.unix_micros("event_time")) / (86_400.0 * 1e6)
    weight: Column = F.lit(0).cast("long")
    for scene_name, scene in cleaning.scenes.items():
        rate = 1 / (scene.half_life_days or params.half_life_days)
        if not faded:
            rate = max(rate - 1 / params.half_life_days, 0.0)
        for type_name, kind in scene.event_types.items():
            sign = -1.0 if kind.negative else 1.0
            amount = F.lit(sign * kind.weight * scene.weight)
            if kind.value_weight is not None:
                amount = amount * F.coalesce(F.expr(f"double({kind.value_weight})"), F.lit(1.0))
            size = F.abs(amount) * F.pow(F.lit(2.0), -age_days * rate) * WEIGHT_ONE
            units = F.signum(amount) * F.greatest(F.round(size), F.lit(1.0))
            here = (F.col("scene") == scene_name) & (F.col("event_type") == type_name)
            weight = F.when(here, units.cast("long")).otherwise(weight)
    return weight


def interactions(pairs: DataFrame, history_cap: int) -> DataFrame:
    """Pairs with `in_profile`: whether they are among the user's `history_cap` most recent items."""
    recent = Window.partitionBy("user_id").orderBy(F.desc("last_event_time"), "item_num")
    ranked = pairs.withColumn("in_profile", F.row_number().over(recent) <= history_cap)
    return ranked.select(*INTERACTIONS.schema.names)


def known_users(events: DataFrame, pairs: DataFrame, declared: DataFrame | None) -> DataFrame:
    """Everyone who must get a list, of the log or declared, with the segment declared or else last seen."""
    latest = F.max(F.when(F.col("segment").isNotNull(), F.struct("event_time", "segment")))
    seen = events.groupBy("user_id").agg(
        F.count("*").alias("n_events"), F.max("event_time").alias("last_event_time"), latest.alias("latest")
    )
    users = seen.select("user_id", "n_events", "last_event_time", F.col("latest.segment").alias("segment"))
    if declared is not None:
        named = declared.select("user_id", F.col("segment").alias("declared_segment"))
        users = users.join(named, "user_id", "full_outer").withColumn(
            "segment", F.coalesce("declared_segment", "segment")
        )
    counts = pairs.groupBy("user_id").agg(F.count("*").alias("n_items"))
    filled = users.join(counts, "user_id", "left").na.fill(0, ["n_events", "n_items"])
    return filled.select(*USERS.schema.names)


def _declared_users(session: SparkSession, night: Night) -> DataFrame | None:
    """Users of the configured sources with segment and interests, one row each: where sources disagree the
    smallest segment and the smallest text win.

    A row without a usable id names nobody and is left out.
    """
    longest = night.config.clean_events.max_id_chars
    frames = []
    for number, source in enumerate(night.config.weigh_events.users):
        name = f"users{number}"
        table = raw.open_raw(session, source, night.raw["users_raw"][name], f"weigh_events.users[{number}]")
        nothing = "cast(null as string)"
        wanted = {"segment": nothing, "interests": nothing, **raw.mapping(source)}
        frames += [group.frame.filter(~F.col(raw.UNREADABLE)) for group in table.groups(wanted)]
    user_id = F.trim("user_id").alias("user_id")
    together = raw.unite(frame.select(user_id, "segment", "interests") for frame in frames)
    if together is None:
        return None
    usable = (F.col("user_id") != "") & (F.length("user_id") <= longest) & ~F.col("user_id").rlike(CONTROL)
    named = together.filter(usable).withColumn("segment", F.nullif(F.trim("segment"), F.lit("")))
    named = named.withColumn("interests", text(F.regexp_replace("interests", BAD_LETTERS, " ")))
    return named.groupBy("user_id").agg(
        F.min("segment").alias("segment"), F.min("interests").alias("interests")
    )


def popularity(
    pairs: DataFrame, people: DataFrame, available: DataFrame, params: WeighEvents, end: datetime
) -> DataFrame:
    """The most popular available items of each segment and of everyone.

    A user counts once for an item, at 2^(−age of the last liking event / half-life), so that one busy user
    does not make a fashion.
    """
    age_days = (F.lit(end.timestamp()) - F.unix_micros("last_liked") / 1e6) / 86_400.0
    counted = F.round(F.pow(F.lit(2.0), -age_days / params.popularity_half_life_days) * WEIGHT_ONE).cast(
        "long"
    )
    liked = (
        pairs.filter(F.col("last_liked").isNotNull() & (F.col("weight") > 0))
        .join(available.select("item_num"), "item_num")
        .join(people.select("user_id", "segment"), "user_id")
        .withColumn("counted", counted)
    )
    segments = F.array_compact(F.array(F.lit(EVERYONE), F.nullif("segment", F.lit(EVERYONE))))
    totals = liked.withColumn("segment", F.explode(segments)).groupBy("segment", "item_num")
    best = Window.partitionBy("segment").orderBy(F.desc("weight"), "item_num")
    ranked = totals.agg(F.sum("counted").alias("weight")).withColumn("rank", F.row_number().over(best))
    return ranked.filter(F.col("rank") <= params.popularity_items).select(*POPULARITY.schema.names)


def _counts(events: DataFrame, pairs: DataFrame, people: DataFrame) -> Metrics:
    with spark.spark_errors("weigh_events"):
        used = pairs.agg(F.sum("n_events"), F.count("*")).first()
        users = people.agg(F.count("*"), F.count_if(F.col("n_items") == 0)).first()
        total = events.agg(F.count("*"), F.count("item_id")).first()
    assert used is not None and users is not None and total is not None
    return {
        "events": total[0],
        "events_without_item": total[0] - total[1],
        "events_of_unknown_items": total[1] - (used[0] or 0),
        "interactions": used[1],
        "users": users[0],
        "users_without_items": users[1],
    }
