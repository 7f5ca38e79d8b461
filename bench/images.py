"""Pictures to what a model sees: ours against transformers' image processor, CPU seconds of one thread.

    make bench-images                 200 JPEG files of 640 x 480
    make bench-images ARGS="--n 1000 --width 1600 --height 1200"

Both start from files and end with pixel values of CLIP's shape, in rounds that take turns; medians are told.
The values are compared too. No model runs: what comes after is the same for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nightjar.engines.encoder.images import Bounds, ImageReader, to_pixel_values
from nightjar.engines.encoder.model_dir import read_image_steps

BATCH = 40
"""Pictures at once: what a CPU actor takes of a model of 50 tokens a picture."""


def main() -> None:
    """Prints pictures a CPU second of both, and the headline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("n", 200), ("width", 640), ("height", 480), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder), options.n, (options.width, options.height))
        processor = CLIPImageProcessorPil()
        processor.save_pretrained(folder)
        steps = read_image_steps(Path(folder))
        read = ImageReader(steps, Bounds(10**9, 10**9))

        def ours(batch: Sequence[str]) -> torch.Tensor:
            pixels = [one for one in read(batch) if not isinstance(one, str)]
            return to_pixel_values(pixels, steps, torch.device("cpu"))

        def theirs(batch: Sequence[str]) -> torch.Tensor:
            made: torch.Tensor = processor([load_image(one) for one in batch], return_tensors="pt")[
                "pixel_values"
            ]
            return made

        worst = float((ours(files[:BATCH]) - theirs(files[:BATCH])).abs().max())
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(options.rounds):
            for name, make in (("ours", ours), ("theirs", theirs)):
                seconds[name].append(cpu_seconds(make, files))
    rate = {name: options.n / statistics.median(found) for name, found in seconds.items()}
    print(f"pictures a CPU second: ours {rate['ours']:.0f}, transformers {rate['theirs']:.0f}")
    print(f"bench images: vs_transformers={rate['ours'] / rate['theirs']:.2f} max_difference={worst:.1e}")


def write_pictures(folder: Path, n: int, size: tuple[int, int]) -> list[str]:
    """JPEG files of smooth random colours with some noise, so that they compress as photographs do."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(noisy).save(path, "JPEG", quality=85)
        files.append(str(path))
    return files


def cpu_seconds(make: Callable[[Sequence[str]], torch.Tensor], files: Sequence[str]) -> float:
    """CPU seconds of making all pictures, a batch at a time."""
    before = time.process_time()
    for start in range(0, len(files), BATCH):
        make(files[start : start + BATCH])
    return time.process_time() - before


if __name__ == "__main__":
    main()
