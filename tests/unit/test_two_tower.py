"""Text and image towers against plain transformers, pictures against its processor, files that are none."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from nightjar.engines.encoder import EncoderSpec, load_encoder, model_fingerprint
from nightjar.engines.encoder.images import (
    MISSING,
    TOO_LARGE,
    UNREADABLE,
    Bounds,
    ImageReader,
    to_pixel_values,
)
from nightjar.engines.encoder.model_dir import read_layout
from nightjar.engines.encoder.spec import Illustrated
from nightjar.engines.encoder.two_tower import TwoTower
from nightjar.errors import ConfigError
from tests.unit.encoder_models import sample_texts
from tests.unit.two_tower_models import encoded, picture, save_two_tower

KINDS = ("clip", "siglip")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return {kind: save_two_tower(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pictures of all shapes, modes and formats as files: name -> path."""
    folder = tmp_path_factory.mktemp("images")
    made = {
        "wide.png": encoded(picture(0, 90, 31)),
        "tall.jpg": encoded(picture(1, 30, 77), "JPEG", quality=95),
        "square.webp": encoded(picture(2, 64, 64), "WEBP", lossless=True),
        "tiny.png": encoded(picture(3, 3, 2)),
        "one.png": encoded(picture(4, 1, 1)),
        "thin.png": encoded(picture(5, 400, 3)),
        "exact.bmp": encoded(picture(6, 32, 32), "BMP"),
        "grey.png": encoded(picture(7, 50, 40, "L")),
        "palette.gif": encoded(picture(8, 50, 40, "P"), "GIF"),
        "alpha.png": encoded(picture(9, 50, 40, "RGBA")),
        "cmyk.jpg": encoded(picture(10, 50, 40, "CMYK"), "JPEG"),
        "deep.png": encoded(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50))),
        "two level.png": encoded(picture(11, 50, 40, "1")),
        "turned.jpg": encoded(picture(12, 60, 40), "JPEG", exif=_turned()),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return {name: str(folder / name) for name in made}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def peer(folder: Path) -> tuple[Any, Any, Any]:
    """transformers' own model, tokenizer and image processor."""
    model = hf.AutoModel.from_pretrained(folder).eval()
    return model, hf.AutoTokenizer.from_pretrained(folder), hf.AutoImageProcessor.from_pretrained(folder)


def loaded(folder: Path, **params: Any) -> TwoTower:
    found = load_encoder(EncoderSpec(str(folder), **params))
    assert isinstance(found, TwoTower)
    return found


def theirs(folder: Path, texts: list[str], images: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit features of both towers and the pixel values, each input by itself."""
    model, tokenizer, processor = peer(folder)
    pad: Any = "max_length" if model.config.model_type == "siglip" else False
    found: list[list[np.ndarray]] = [[], [], []]
    with torch.inference_mode():
        for text in texts:
            given = tokenizer([text], truncation=True, max_length=24, padding=pad, return_tensors="pt")
            if pad:
                given.pop("attention_mask")
            found[0].append(model.get_text_features(**given).pooler_output[0].numpy())
        for image in images:
            given = processor([hf.image_utils.load_image(image)], return_tensors="pt")
            found[1].append(model.get_image_features(**given).pooler_output[0].numpy())
            found[2].append(given["pixel_values"][0].numpy())
    text, image = (np.array([row / np.linalg.norm(row) for row in rows]) for rows in found[:2])
    return text, image, np.array(found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_equal_transformers(models: dict[str, Path], files: dict[str, str], kind: str) -> None:
    texts, images = [t for t in sample_texts(25) if t], list(files.values())
    text, image, _ = theirs(models[kind], texts, images)
    ours = loaded(models[kind], token_budget=150)  # batches of several sizes
    assert np.abs(ours.encode(texts) - text).max() < 1e-5
    vectors, bad = ours.encode_images(images)
    assert not bad
    assert np.abs(vectors - image).max() < 1e-5
    assert ours.dim == text.shape[1]
    assert ours.last_stats.n_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
def test_pixels_equal_the_processor(
    models: dict[str, Path], files: dict[str, str], tmp_path: Path, kind: str, nested: bool
) -> None:
    folder = save_two_tower(tmp_path, kind, nested=True) if nested else models[kind]
    layout = read_layout(EncoderSpec(str(folder)))
    assert layout.towers is not None
    read = ImageReader(layout.towers.steps, Bounds(10**6, 10**6), threads=3)(list(files.values()))
    pixels = [one for one in read if not isinstance(one, str)]
    assert len(pixels) == len(files)
    values = to_pixel_values(pixels, layout.towers.steps, torch.device("cpu")).numpy()
    expected = theirs(models[kind], [], list(files.values()))[2]
    assert np.abs(values - expected).max() < 1e-5


def test_an_item_vector_joins_text_and_picture(models: dict[str, Path], files: dict[str, str]) -> None:
    path = files["wide.png"]
    inline = "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    text, image, _ = theirs(models["clip"], ["red heart", "blue mug"], [path])
    ours = loaded(models["clip"], text_weight=1.0, image_weight=0.5)
    given = ["red heart", Illustrated("red heart", path), Illustrated("blue mug", inline), "blue mug"]
    vectors = ours.encode(given)
    assert dict(ours.bad_images) == {}
    for row, place in ((1, 0), (2, 1)):
        joined = text[place] + 0.5 * image[0]
        assert np.abs(vectors[row] - joined / np.linalg.norm(joined)).max() < 1e-5
    assert np.abs(vectors[[0, 3]] - text).max() < 1e-5
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def bad_images(folder: Path) -> dict[str, str]:
    """Place -> why it is bad."""
    whole = encoded(picture(1, 300, 200), "JPEG")
    made = {
        "cut.jpg": whole[: len(whole) // 2],
        "head.png": encoded(picture(1, 300, 200))[:30],
        "text.jpg": b"<html>not found</html>",
        "empty.jpg": b"",
        "post.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    (folder / "bomb.png").write_bytes(encoded(Image.new("1", (12_000, 12_000))))
    (folder / "heavy.bmp").write_bytes(encoded(picture(1, 600, 600), "BMP"))
    letters = base64.b64encode(whole).decode()
    return {
        **{str(folder / name): UNREADABLE for name in made},
        str(folder / "bomb.png"): TOO_LARGE,
        str(folder / "heavy.bmp"): TOO_LARGE,
        str(folder / "nowhere.png"): MISSING,
        str(folder): MISSING,
        "nonsense://x/y.png": UNREADABLE,
        "data:image/png;base64,!!!": UNREADABLE,
        "data:image/png,plain": UNREADABLE,
        "data:;base64," + letters[: len(letters) // 2 // 4 * 4]: UNREADABLE,
        "data:;base64," + base64.b64encode(bytes(1_000_001)).decode(): TOO_LARGE,
    }


def test_bad_pictures_are_told_and_their_texts_stand_alone(
    models: dict[str, Path], files: dict[str, str], tmp_path: Path
) -> None:
    bad = bad_images(tmp_path)
    ours = loaded(models["clip"], max_image_bytes=1_000_000, max_image_pixels=1_000_000)
    good = files["tall.jpg"]
    places = [*bad, good, *bad]
    vectors = ours.encode([Illustrated(f"text {n}", place) for n, place in enumerate(places)])
    assert dict(ours.bad_images) == {n: bad[place] for n, place in enumerate(places) if place in bad}
    alone = ours.encode([f"text {n}" for n in range(len(places))])
    assert dict(ours.bad_images) == {}
    same = np.abs(vectors - alone).max(axis=1) < 1e-6
    assert same.tolist() == [place in bad for place in places]
    assert np.isfinite(vectors).all()


def test_running_out_of_memory_halves_a_batch(
    models: dict[str, Path], files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = loaded(models["clip"], token_budget=10_000)
    texts = [f"red {n} heart" for n in range(20)]
    before = ours.encode([Illustrated(text, files["wide.png"]) for text in texts])
    whole = ours._texts

    def little(tokens: Any) -> torch.Tensor:
        if len(tokens) > 3:
            raise MemoryError
        return whole(tokens)

    monkeypatch.setattr(ours, "_texts", little)
    after = ours.encode([Illustrated(text, files["wide.png"]) for text in texts])
    assert np.abs(after - before).max() < 1e-6


def test_what_decides_a_vector_is_in_the_fingerprint(models: dict[str, Path], tmp_path: Path) -> None:
    spec = EncoderSpec(str(models["clip"]))
    prints = {model_fingerprint(spec), model_fingerprint(EncoderSpec(str(models["clip"]), image_weight=0.5))}
    other = save_two_tower(tmp_path, "clip")
    assert model_fingerprint(EncoderSpec(str(other))) in prints
    settings = other / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 3', '"resample": 2'))
    prints.add(model_fingerprint(EncoderSpec(str(other))))
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"precision": "int8"}, "knows no precision int8"),
        ({"pooling": "mean"}, "knows no pooling 'mean'"),
        ({"max_length": 25}, "more than the 24 positions"),
        ({"dims": 99}, "dims 99 is more than the 24 values"),
    ],
)
def test_what_such_a_model_cannot_do_is_refused(
    models: dict[str, Path], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(EncoderSpec(str(models["clip"]), **params))


@pytest.mark.parametrize(
    ("found", "instead", "message"),
    [
        ('"do_rescale": true', '"do_rescale": false', "pads or does not rescale"),
        ('"shortest_edge": 36', '"longest_edge": 36', "is not known"),
        ('"image_std"', '"image_sdt"', "not three numbers"),
    ],
)
def test_an_unknown_image_processor_is_refused(
    tmp_path: Path, found: str, instead: str, message: str
) -> None:
    settings = save_two_tower(tmp_path, "clip") / "preprocessor_config.json"
    assert found in settings.read_text()
    settings.write_text(settings.read_text().replace(found, instead))
    with pytest.raises(ConfigError, match=message):
        read_layout(EncoderSpec(str(tmp_path)))
    settings.unlink()
    with pytest.raises(ConfigError, match="nothing says how its pictures are prepared"):
        read_layout(EncoderSpec(str(tmp_path)))


def test_weights_must_say_something() -> None:
    with pytest.raises(ConfigError, match="one of them above 0"):
        EncoderSpec("x", text_weight=0.0, image_weight=0.0)
