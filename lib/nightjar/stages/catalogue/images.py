"""Which picture an item has, as a hash: an item is encoded again when its text or its picture changed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pyarrow import fs as pafs

from nightjar.store import locate


def with_images(texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of item_text, the hash of an item with a picture being that of its text and its picture."""
    places = [row["image"] for row in texts if row["image"]]
    known = dict(zip(places, image_keys(places), strict=True))
    return [
        row | {"text_hash": _sha256(f"{row['text_hash']} {known[row['image']]}")} if row["image"] else row
        for row in texts
    ]


def image_keys(places: Sequence[str]) -> list[str]:
    """For each picture what tells it from others: the hash of its bytes where they stand in the row, else its
    place with the size and time of the file, or that there is none. Files are asked for folder by folder.
    """
    found = {place: _sha256(place) for place in places if place.startswith("data:")}
    folders: dict[str, list[str]] = defaultdict(list)
    for place in dict.fromkeys(places):
        if place not in found:
            folders[place.rpartition("/")[0]].append(place)
    for folder, inside in folders.items():
        system, base = locate(folder or "/")
        infos = system.get_file_info([f"{base}/{place.rpartition('/')[2]}" for place in inside])
        found |= dict(zip(inside, map(_of_file, inside, infos), strict=True))
    return [found[place] for place in places]


def _of_file(place: str, info: pafs.FileInfo) -> str:
    is_there = info.type == pafs.FileType.File
    return _sha256(f"{place} {info.size} {info.mtime_ns}" if is_there else f"{place} missing")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
