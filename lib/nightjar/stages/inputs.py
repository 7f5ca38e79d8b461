"""Which raw files a stage reads tonight: the paths of the configuration resolved for one date.

Free of any engine, so that the command line can say what a night would read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta

from nightjar.config import Files, NightConfig
from nightjar.engines.encoder import model_fingerprint
from nightjar.sources import RawFile, raw_files
from nightjar.stage import Raw, Stage
from nightjar.stages.encoding.spec import encoder_spec
from nightjar.store import MANIFEST, Dataset, Store
from nightjar.tables import EVENTS

RawInputs = dict[str, dict[str, tuple[RawFile, ...]]]


def raw_inputs(stage: Stage, config: NightConfig, ds: date) -> RawInputs:
    """The raw inputs of a stage by name, then source: what `run_stage` takes as `raw`.

    events_raw: a key for each scene; items_raw: source0 …, triples0 …; users_raw: users0 …. Raises InputError
    for a pattern without files.
    """
    found: RawInputs = {}
    for source in stage.reads:
        if isinstance(source, Raw):
            found.update(_RESOLVE[source.name](config, ds))
    return found


def _events(config: NightConfig, ds: date) -> RawInputs:
    cleaning = config.clean_events
    daily = cleaning.history == "daily"
    days = 1 if daily else cleaning.window_days
    scenes = {
        name: raw_files(scene, ds, days, f"clean_events.scenes.{name}")
        for name, scene in cleaning.scenes.items()
    }
    found: RawInputs = {"events_raw": scenes}
    if daily:
        found["events_before"] = _before(config, ds)
    return found


def _before(config: NightConfig, ds: date) -> dict[str, tuple[RawFile, ...]]:
    """The commits of the nights before, as files named by fingerprint: how many days back -> the commit.

    A late event may arrive twice on different nights; which ids came before is an input like any file.
    """
    found: dict[str, tuple[RawFile, ...]] = {}
    for back in range(1, config.clean_events.late_days + 1):
        dataset = Dataset(Store(config.root), EVENTS, str(ds - timedelta(days=back)))
        committed = dataset.committed()
        if committed is not None:
            path = dataset.store.path(dataset.folder, MANIFEST)
            found[str(back)] = (RawFile(path, committed.manifest.fingerprint, 0, 0),)
    return found


def _items(config: NightConfig, ds: date) -> RawInputs:
    items = config.build_items
    sources = _numbered("source", items.sources, "build_items.sources", ds)
    return {"items_raw": {**sources, **_numbered("triples", items.triples, "build_items.triples", ds)}}


def _users(config: NightConfig, ds: date) -> RawInputs:
    return {"users_raw": _numbered("users", config.weigh_events.users, "weigh_events.users", ds)}


def _numbered(
    name: str, sources: tuple[Files, ...] | tuple[()], where: str, ds: date
) -> dict[str, tuple[RawFile, ...]]:
    return {
        f"{name}{at}": raw_files(files, ds, files.days, f"{where}.{at}") for at, files in enumerate(sources)
    }


def _model(config: NightConfig, ds: date) -> RawInputs:
    """The encoder's weights and files by their hash: another model under the same name is another input."""
    del ds
    encoding = config.encode_items
    fingerprint = model_fingerprint(encoder_spec(encoding, encoding.resources))
    return {"model": {"model": (RawFile(encoding.model, fingerprint, 0, 0),)}}


def _limits(config: NightConfig, ds: date) -> RawInputs:
    """Files of the deny and allow lists of `retrieve`: deny0 …, allow0 …, members0 …."""
    lists = config.retrieve
    members = {
        f"members{at}": raw_files(one.members, ds, one.members.days, f"retrieve.allow.{at}.members")
        for at, one in enumerate(lists.allow)
        if one.members is not None
    }
    return {
        "limits_raw": {
            **_numbered("deny", lists.deny, "retrieve.deny", ds),
            **_numbered("allow", lists.allow, "retrieve.allow", ds),
            **members,
        }
    }


def _forget(config: NightConfig, ds: date) -> RawInputs:
    """Files of the users to forget: forget0 …."""
    return {"forget_raw": _numbered("forget", config.privacy.forget, "privacy.forget", ds)}


_RESOLVE: Mapping[str, Callable[[NightConfig, date], RawInputs]]
_RESOLVE = {
    "events_raw": _events,
    "items_raw": _items,
    "users_raw": _users,
    "model": _model,
    "limits_raw": _limits,
    "forget_raw": _forget,
}
