"""A generated world for the demo and the tests: a catalogue, users, dirty logs, and the truth about them.

Everything follows from `GenerateSpec` alone: the same spec gives the same bytes, and appended days
(`next_days`) leave the files of the first days as they are. Nothing is learnt from or copied from real data.

    out/items/dt=DAY/part-0.jsonl       catalogue rows first delivered on DAY (day one: all older ones)
    out/knowledge/dt=DAY/triples.csv    item_id, relation, entity
    out/users/users.csv                 user_id, segment, signup_date, likes (of half of the silent users)
    out/shop/dt=DAY/part-0.parquet      views, carts, purchases, returns; local time of Berlin
    out/video/dt=DAY/events.jsonl       films watched, likes, dislikes; milliseconds since 1970
    out/search/dt=DAY/log.csv           clicks on search results; local time of New York
    out/asked/dt=DAY/asked.csv          searches without a click, of the other half of the silent users
    out/truth/                          what a test may look at and a night must not: facts.json,
                                        withheld.parquet, items.parquet, users.parquet
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightjar.generate.asked import Asked
from nightjar.generate.behave import Behaviour
from nightjar.generate.catalogue import build_catalogue
from nightjar.generate.ceiling import Witness
from nightjar.generate.dirt import Soiler, build_ids
from nightjar.generate.files import claim
from nightjar.generate.people import build_people
from nightjar.generate.scenes import SceneFiles
from nightjar.generate.shelves import Shelves, write_users
from nightjar.generate.spec import GenerateSpec
from nightjar.generate.text import Texts
from nightjar.generate.truth import write_truth
from nightjar.generate.vocabulary import load_vocabulary

__all__ = ["GenerateSpec", "generate"]


def generate(
    spec: GenerateSpec, out: str | Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Write a world under ``out`` and return its facts, which also stand in ``truth/facts.json``.

    ``progress`` is called with (days done, days in all). Memory stays bounded by the catalogue, the users
    and about a million rows, whatever the number of events. Run
    again with more `next_days` it adds the new files and leaves the others untouched. Raises ConfigError for
    an impossible spec or a folder of another world, StorageError where a file cannot be written.
    """
    root = Path(out)
    claim(spec, root)
    vocabulary = load_vocabulary()
    catalogue = build_catalogue(spec, vocabulary)
    people, plan = build_people(spec, catalogue)
    ids = build_ids(len(people), len(catalogue.items))
    texts = Texts(catalogue, vocabulary)
    behaviour = Behaviour(spec, catalogue, people, plan)
    soiler, scenes, shelves = (
        Soiler(behaviour, ids),
        SceneFiles(root, ids, texts),
        Shelves(spec, texts, ids, root),
    )
    witness = Witness(behaviour)
    asked = Asked(spec, people, ids, texts)
    users = write_users(spec, people, ids, root, asked.interests())
    searches = 0
    rows: dict[str, Any] = {}
    shelf: dict[str, Any] = {}
    for day in range(spec.all_days):
        date = spec.date_of(day).isoformat()
        blocks = soiler.day(day)
        rows[date] = scenes.write_day(date, blocks)
        shelf[date] = shelves.write_day(day)
        searches += asked.write_day(day, root)
        witness.see(day, blocks)
        if progress is not None:
            progress(day + 1, spec.all_days)
    words = {"searches": searches, "searchers": len(asked.searchers), "interested": len(asked.interested)}
    counted = {"rows_by_day": rows, "items_by_day": shelf, "users": users, "asked": words}
    return write_truth(witness, ids, root, counted)
