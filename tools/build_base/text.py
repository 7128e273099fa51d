"""The text side: a byte-level BPE that takes any text, and a small CLIP text encoder, untrained."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH = 32  # tokens a prompt
WIDTH = 192
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], folder: Path, size: int = 2048) -> CLIPTokenizer:
    """Learn merges from ``texts`` and write a tokenizer in CLIP's own files."""
    letters = sorted(ByteLevel.alphabet())
    context = Tokenizer(BPE(end_of_word_suffix="</w>"))
    context.normalizer = Lowercase()
    context.pre_tokenizer = Sequence([Split(" ", "removed"), Split(",", "isolated"), ByteLevel(add_prefix_space=False)])
    context.train_from_iterator(
        texts,
        BpeTrainer(vocab_size=size, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in _merges(context)]
    # CLIP's order: bytes, bytes at a word's end, merges, specials
    tokens = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges), START, END]
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    specials = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def _merges(context: Tokenizer) -> list[str | list[str]]:
    merges: list[str | list[str]] = json.loads(context.to_str())["model"]["merges"]
    return merges


def make_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of two layers for the tokenizer's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
