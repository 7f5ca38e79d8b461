"""Image files to the arrays that a model sees: read, checked, decoded, resized, cropped, stacked.

The steps and their order are those of transformers' image processors for CLIP and SigLIP on Pillow
(image_processing_backends.PilBackend, 5.23), read from the same file; what is done image by image there is
done for a batch here, in bytes until the last step. What is no image says why instead of raising.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pyarrow import fs as pafs
from torch import Tensor

from nightjar.engines.encoder.model_dir import ImageSteps
from nightjar.errors import ConfigError, NightjarError
from nightjar.store import locate

MISSING, UNREADABLE, TOO_LARGE = "image_missing", "image_unreadable", "image_too_large"
"""Why an image was not used: no such file; truncated or no image; more bytes or pixels than allowed."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded; Pillow would start an interpreter for others (EPS)."""

Image.MAX_IMAGE_PIXELS = None  # our own bound is looked at before a pixel is decoded

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Bounds:
    """The largest image worth decoding: bytes of the file, pixels of the picture."""

    n_bytes: int
    n_pixels: int


@dataclass(frozen=True)
class ImageReader:
    """Reads images with some threads; a bad one is a word of why in its place."""

    steps: ImageSteps
    bounds: Bounds
    threads: int = 1

    def __call__(self, places: Sequence[str]) -> list[Pixels | str]:
        """For each path, URI or data: URI the (height, width, 3) array, or MISSING, UNREADABLE, TOO_LARGE."""
        if self.threads == 1 or len(places) < 2:
            return [self._one(place) for place in places]
        with ThreadPoolExecutor(self.threads) as pool:  # Pillow lets go of the interpreter while it decodes
            return list(pool.map(self._one, places))

    def _one(self, place: str) -> Pixels | str:
        data = read_bytes(place, self.bounds.n_bytes)
        return data if isinstance(data, str) else decode(data, self.steps, self.bounds.n_pixels)


def read_bytes(place: str, most: int) -> bytes | str:
    """The bytes behind a path, URI or data: URI, or why there are none. Storage that fails raises OSError."""
    if place.startswith("data:"):
        return _inline(place, most)
    try:
        folder, slash, name = place.rpartition("/")
        system, base = _folder(folder or slash or ".")
        path = f"{base}/{name}"
        found = system.get_file_info(path)
        if found.type != pafs.FileType.File:
            return MISSING
        if found.size is not None and found.size > most:
            return TOO_LARGE
        with system.open_input_file(path) as file:
            return bytes(file.read())
    except FileNotFoundError:
        return MISSING
    except (NightjarError, ValueError):
        return UNREADABLE  # no path at all: an unknown scheme, a NUL inside


@functools.lru_cache(maxsize=4096)
def _folder(uri: str) -> tuple[pafs.FileSystem, str]:
    """`locate`, once a folder: a client of an object store is not made for every picture."""
    return locate(uri)


def _inline(place: str, most: int) -> bytes | str:
    """The bytes of `data:[<type>];base64,<letters>` (RFC 2397)."""
    head, comma, letters = place.partition(",")
    if not comma or not head.endswith(";base64"):
        return UNREADABLE
    if len(letters) * 3 // 4 > most:
        return TOO_LARGE
    try:
        return base64.b64decode(letters, validate=True)
    except (binascii.Error, ValueError):
        return UNREADABLE


def decode(data: bytes, steps: ImageSteps, n_pixels: int) -> Pixels | str:
    """The upright RGB picture, resized and cropped as the model wants it, (height, width, 3) uint8."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > n_pixels:
                return TOO_LARGE
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except MemoryError:
        return TOO_LARGE
    except Exception:  # broken files raise OSError, SyntaxError, ValueError, struct.error, … by their format
        return UNREADABLE
    return _cropped(_resized(upright, steps), steps)


def _resized(picture: Image.Image, steps: ImageSteps) -> Pixels:
    width, height = picture.size
    size = steps.size
    if isinstance(size, int):  # the shorter edge; the other keeps the shape, rounded down
        short, long = min(width, height), max(width, height)
        other = max(1, int(size * long / short))
        size = (other, size) if width <= height else (size, other)
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling(steps.resample))
    return np.asarray(picture, np.uint8)


def _cropped(pixels: Pixels, steps: ImageSteps) -> Pixels:
    """The middle; a picture smaller than that stands in the middle of black."""
    if steps.crop is None:
        return pixels
    height, width = steps.crop
    have = pixels.shape[:2]
    if have[0] < height or have[1] < width:
        new = np.zeros((max(height, have[0]), max(width, have[1]), 3), np.uint8)
        top, left = -(-(new.shape[0] - have[0]) // 2), -(-(new.shape[1] - have[1]) // 2)
        new[top : top + have[0], left : left + have[1]] = pixels
        first, second = (have[0] - height) // 2 + top, (have[1] - width) // 2 + left
        return new[max(0, first) :, max(0, second) :][:height, :width]
    top, left = (have[0] - height) // 2, (have[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def to_pixel_values(pixels: Sequence[Pixels], steps: ImageSteps, device: torch.device) -> Tensor:
    """A stack of equally large pictures as (n, 3, height, width) float32: rescaled and normalised at once.

    Bytes go to the device, a quarter of what floats would be.
    """
    if len({one.shape for one in pixels}) > 1:
        raise ConfigError(
            "the model's image processor neither crops nor resizes to one size: no batch can be made"
        )
    stack = torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2).float()
    scale, offset = (
        torch.tensor(values, dtype=torch.float64, device=device).float()[:, None, None]
        for values in (steps.scale, steps.offset)
    )
    return torch.addcmul(offset, stack, scale)
