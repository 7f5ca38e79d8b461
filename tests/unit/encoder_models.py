"""Small random-weight encoders of every family, with real tokenizers, for tests that compare with a peer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = """
red green blue vintage heart lamp mug tin sign paper chain kit wooden frame white hanging party bunting
garden set of six cake cases retro spot lunch bag jumbo storage doormat keep calm alarm clock bakelike
pack 72 strawberry ceramic trinket box knitted union flag hot water bottle Ünïcode naïve café straße 東京
don't o'clock state-of-the-art 3.14 50% £9.99 C++ e-mail www.example.com ½ ﬁne Ⅳ ελληνικά עברית
""".split()  # noqa: SIM905 (a list of seventy words is no easier to read)


def sample_texts(n: int = 40, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 words of a small world, some odd: empty, blank, emoji, control, very long."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, int(size))) for size in rng.integers(1, 60, n)]
    odd = [
        "",
        "   ",
        "a",
        "👩‍👩‍👧 emoji 🎉",
        "tab\tand\nnewline  double",
        "x" * 500,
        "word " * 400,
        "[SEP] </s> <s>",
    ]
    return texts + odd


def save_model(folder: Path, family: str, seed: int = 0) -> Path:
    """Write config, random weights and tokenizer of a ``family`` into ``folder``; returns it."""
    torch.manual_seed(seed)
    make_config, make_tokenizer = FAMILIES[family]
    tokenizer = make_tokenizer()
    config = make_config(len(tokenizer))
    model = hf.AutoModel.from_config(config).eval()
    for parameter in model.parameters():
        # Far larger than the usual 0.02: attention must depend on its neighbours for a mix-up to be seen.
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_modules(
    folder: Path, *modules: tuple[str, dict[str, Any]], config: dict[str, Any] | None = None
) -> None:
    """Write modules.json and the modules after the Transformer: (kind, its config) in order."""
    listing = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, (kind, settings) in enumerate(modules, start=1):
        path = folder / f"{i}_{kind}"
        path.mkdir(exist_ok=True)
        type_name = f"sentence_transformers.models.{kind}"
        listing.append({"idx": i, "name": str(i), "path": path.name, "type": type_name})
        if settings:
            (path / "config.json").write_text(json.dumps(settings))
        if kind == "Dense":
            save_dense(path, settings)
        if kind == "LayerNorm":
            size = settings["dimension"]
            save_file(
                {"norm.weight": torch.rand(size), "norm.bias": torch.rand(size)}, path / "model.safetensors"
            )
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config or {}))


def save_dense(path: Path, settings: dict[str, Any]) -> None:
    """Random weights of a Dense module."""
    torch.manual_seed(7)
    rows, columns = settings["out_features"], settings["in_features"]
    weights = {"linear.weight": torch.randn(rows, columns)}
    if settings.get("bias", True):
        weights["linear.bias"] = torch.randn(rows)
    if settings.get("use_residual") and rows != columns:
        weights["residual.weight"] = torch.randn(rows, columns)
    save_file(weights, path / "model.safetensors")


def pooling(mode: str | list[str], size: int = 64, **more: Any) -> tuple[str, dict[str, Any]]:
    """A Pooling module of today's form."""
    return "Pooling", {"embedding_dimension": size, "pooling_mode": mode, **more}


def _corpus() -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(300)]


def _wordpiece() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        _corpus(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=96,
    )


def _byte_bpe(ends: bool) -> Any:
    """Byte-level BPE; RoBERTa: <s> ... </s> around a text when ``ends``; Qwen: a trailing end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends else "$A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=96,
        padding_side="right" if ends else "left",
    )


def _metaspace(bos: bool) -> Any:
    """Unigram with U+2581 for spaces; ``<s> text``, and ``</s>`` after it unless ``bos``."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A" if bos else "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=96,
    )


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_DECODER = {
    **_SMALL,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
}

Maker = tuple[Callable[[int], Any], Callable[[], Any]]
FAMILIES: dict[str, Maker] = {
    "bert": (lambda n: hf.BertConfig(vocab_size=n, max_position_embeddings=128, **_SMALL), _wordpiece),
    "distilbert": (
        lambda n: hf.DistilBertConfig(
            vocab_size=n, dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=128
        ),
        _wordpiece,
    ),
    "electra": (
        lambda n: hf.ElectraConfig(vocab_size=n, embedding_size=32, max_position_embeddings=128, **_SMALL),
        _wordpiece,
    ),
    "mpnet": (
        lambda n: hf.MPNetConfig(vocab_size=n, max_position_embeddings=130, pad_token_id=1, **_SMALL),
        lambda: _byte_bpe(ends=True),
    ),
    "deberta": (
        lambda n: hf.DebertaV2Config(
            vocab_size=n,
            max_position_embeddings=128,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=16,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            **_SMALL,
        ),
        _wordpiece,
    ),
    "roberta": (
        lambda n: hf.RobertaConfig(
            vocab_size=n, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1, **_SMALL
        ),
        lambda: _byte_bpe(ends=True),
    ),
    "xlm-roberta": (
        lambda n: hf.XLMRobertaConfig(
            vocab_size=n, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1, **_SMALL
        ),
        lambda: _metaspace(bos=False),
    ),
    "modernbert": (
        lambda n: hf.ModernBertConfig(
            vocab_size=n,
            max_position_embeddings=256,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
            local_attention=16,
            global_attn_every_n_layers=2,
            **{**_SMALL, "num_hidden_layers": 3},
        ),
        _wordpiece,
    ),
    "qwen3": (lambda n: hf.Qwen3Config(vocab_size=n, **_DECODER), lambda: _byte_bpe(ends=False)),
    "mistral": (
        lambda n: hf.MistralConfig(vocab_size=n, sliding_window=24, **_DECODER),
        lambda: _metaspace(bos=False),
    ),
    "gemma3": (
        lambda n: hf.Gemma3TextConfig(
            vocab_size=n,
            sliding_window=16,
            use_bidirectional_attention=True,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention"],
            **_DECODER,
        ),
        lambda: _metaspace(bos=True),
    ),
}
