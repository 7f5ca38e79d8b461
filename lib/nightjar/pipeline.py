"""The night: its stages, in order. Start here.

Each stage reads committed tables and commits new ones; the function behind a declaration is in
stages/<name>.py, the contract of each table in tables.py. Nothing here imports an engine.
"""

from nightjar.stage import Raw, Stage, Window
from nightjar.tables import (
    BLEND,
    CANDIDATES,
    CO_OCCURRENCE,
    EMBEDDINGS_QUARANTINE,
    EVENTS,
    INDEX_SHARDS,
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    ITEM_SIGNALS,
    ITEM_TEXT,
    ITEM_VECTORS,
    ITEMS,
    ITEMS_QUARANTINE,
    METRICS,
    NEIGHBOURS,
    POPULARITY,
    PREDICTED_RATINGS,
    QUARANTINE,
    QUERIES_QUARANTINE,
    QUERY_EMBEDDINGS,
    QUERY_TEXT,
    QUERY_VECTORS,
    RATINGS,
    RECOMMENDATIONS,
    TRUTH,
    USER_METRICS,
    USER_TEXTS,
    USER_VECTORS,
    USERS,
)

EVENTS_RAW = Raw("events_raw")
ITEMS_RAW = Raw("items_raw")
USERS_RAW = Raw("users_raw")
LIMITS_RAW = Raw("limits_raw")
FORGET_RAW = Raw("forget_raw")
MODEL = Raw("model")

CLEAN_EVENTS = Stage(
    "clean_events",
    "spark",
    reads=(EVENTS_RAW, FORGET_RAW),
    writes=(EVENTS, QUARANTINE),
    also=("privacy",),
)
BUILD_ITEMS = Stage(
    "build_items",
    "spark",
    reads=(ITEMS_RAW, Window(EVENTS)),
    writes=(ITEMS, ITEM_TEXT, ITEMS_QUARANTINE),
    version=2,  # pictures
)
ENCODE_ITEMS = Stage(
    "encode_items",
    "ray",
    reads=(ITEM_TEXT, MODEL),
    writes=(ITEM_EMBEDDINGS, EMBEDDINGS_QUARANTINE),
    version=2,  # identical texts once a night, a quarantine
)
WEIGH_EVENTS = Stage(
    "weigh_events",
    "spark",
    reads=(Window(EVENTS), ITEMS, USERS_RAW, FORGET_RAW),
    writes=(INTERACTIONS, USERS, POPULARITY, USER_TEXTS, QUERY_TEXT),
    # Weights of scenes and event types stand with the cleaning; nights cleaned before a request are read.
    also=("clean_events", "privacy"),
    version=2,
)
ENCODE_QUERIES = Stage(
    "encode_queries",
    "ray",
    reads=(QUERY_TEXT, MODEL),
    writes=(QUERY_EMBEDDINGS, QUERIES_QUARANTINE),
    also=("encode_items",),  # the model, the same as for items
)
RELATE_ITEMS = Stage(
    "relate_items",
    "spark",
    reads=(ITEM_TEXT, INTERACTIONS),
    writes=(CO_OCCURRENCE,),
)
LEARN_TASTE = Stage(
    "learn_taste",
    "ray",
    reads=(ITEM_TEXT, ITEM_EMBEDDINGS, QUERY_EMBEDDINGS, INTERACTIONS, CO_OCCURRENCE),
    writes=(ITEM_VECTORS, NEIGHBOURS, QUERY_VECTORS),
    version=8,
)
FIT_BLEND = Stage(
    "fit_blend",
    "ray",
    reads=(ITEM_EMBEDDINGS, INTERACTIONS, USERS, NEIGHBOURS),
    writes=(BLEND, ITEM_SIGNALS),
    # What is popular in a segment; how relations are learnt; whether seen items count.
    also=("weigh_events", "relate_items", "learn_taste", "retrieve"),
    version=9,
)
AGGREGATE_USERS = Stage(
    "aggregate_users",
    "spark",
    reads=(INTERACTIONS, USERS, ITEM_VECTORS, USER_TEXTS, QUERY_VECTORS),
    writes=(USER_VECTORS,),
)
BUILD_INDEX = Stage(
    "build_index",
    "ray",
    reads=(ITEM_VECTORS,),
    writes=(INDEX_SHARDS,),
)
RETRIEVE = Stage(
    "retrieve",
    "ray",
    reads=(USER_VECTORS, USERS, INTERACTIONS, ITEMS, ITEM_VECTORS, INDEX_SHARDS, LIMITS_RAW),
    writes=(CANDIDATES,),
)
RANK = Stage(
    "rank",
    "spark",
    reads=(
        CANDIDATES,
        USERS,
        INTERACTIONS,
        ITEMS,
        ITEM_VECTORS,
        NEIGHBOURS,
        BLEND,
        ITEM_SIGNALS,
        POPULARITY,
        USER_TEXTS,
        QUERY_VECTORS,
    ),
    writes=(RECOMMENDATIONS,),
    also=("retrieve",),  # whether seen items are excluded
    version=5,
)
PUBLISH = Stage(
    "publish",
    "local",
    reads=(RECOMMENDATIONS, USERS, ITEMS, INTERACTIONS, EVENTS, CANDIDATES, FORGET_RAW),
    writes=(METRICS,),
    also=("retrieve", "rank", "privacy"),  # what the lists are held against
)

EVALUATE = Stage(
    "evaluate",
    "spark",
    reads=(
        RECOMMENDATIONS,
        USERS,
        ITEMS,
        INTERACTIONS,
        NEIGHBOURS,
        ITEM_EMBEDDINGS,
        Window(EVENTS),
        Raw("truth"),
        Raw("night_before"),
    ),
    writes=(TRUTH, USER_METRICS, RATINGS, PREDICTED_RATINGS, METRICS),
    also=("clean_events", "weigh_events", "retrieve"),  # what counts as liked, and whether seen items count
    version=2,
)
"""Not part of a night: `nightjar backtest` runs it on the lists of an earlier date."""

NIGHT: tuple[Stage, ...] = (
    CLEAN_EVENTS,
    BUILD_ITEMS,
    ENCODE_ITEMS,
    WEIGH_EVENTS,
    RELATE_ITEMS,
    ENCODE_QUERIES,
    LEARN_TASTE,
    FIT_BLEND,
    AGGREGATE_USERS,
    BUILD_INDEX,
    RETRIEVE,
    RANK,
    PUBLISH,
)
"""Every stage, in order. The last one, `publish`, moves LATEST.json when its gates allow it."""
