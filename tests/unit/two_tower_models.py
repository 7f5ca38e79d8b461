"""Small random-weight models with a text and an image tower, and pictures good and bad, for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.unit.encoder_models import _byte_bpe

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SMALL, "max_position_embeddings": 24, "bos_token_id": 0, "pad_token_id": 1}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 8}


def save_two_tower(folder: Path, kind: str, *, nested: bool = False) -> Path:
    """Config, weights, tokenizer and image processor of a `clip` or `siglip` model; returns the folder.

    nested: the image processor's file as AutoProcessor of transformers 5 writes it.
    """
    torch.manual_seed(3)
    tokenizer = _byte_bpe(ends=True)
    tokenizer.model_max_length = 24
    text = {**_TEXT, "vocab_size": len(tokenizer), "eos_token_id": 2}
    processor: Any
    if kind == "clip":
        config = hf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=24)
        model = hf.CLIPModel(config)
        processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    else:
        config = hf.SiglipConfig(text_config=text, vision_config=_VISION)
        model = hf.SiglipModel(config)
        processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.25)
    model.eval().save_pretrained(folder)
    if nested:
        hf.CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    else:
        processor.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 50, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Smooth random colours, so that resizing matters and JPEG does not ruin them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    sink = io.BytesIO()
    image.save(sink, format_, **options)
    return sink.getvalue()
