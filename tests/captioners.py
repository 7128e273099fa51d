"""Tiny models that caption, with random weights: what they say means nothing, and is the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["WORDS", "write_blip", "write_llava"]

WORDS = ["a", "photo", "of", "cat", "dog", "red", "blue", "house", "on", "the", "tree", ".", ",", "user", "assistant"]
_SIDE = 32


def write_blip(folder: Path) -> Path:
    """Write a BLIP, which goes on with the beginning of a caption."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS]
    config = BlipConfig(
        text_config={**size, **ids, "vocab_size": len(vocabulary), "encoder_hidden_size": 16},
        vision_config={**size, "image_size": _SIDE, "patch_size": 16},
        projection_dim=8,
    )
    folder.mkdir()
    words = folder / "vocab.txt"
    words.write_text("\n".join(vocabulary))
    processor = BlipProcessor(
        BlipImageProcessorPil(size={"height": _SIDE, "width": _SIDE}), BertTokenizer(vocab=str(words))
    )
    return _write(folder, BlipForConditionalGeneration, config, processor)


def write_llava(folder: Path) -> Path:
    """Write a LLaVA, which answers what it is asked."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for message in messages %}user {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        " assistant"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=_SIDE, patch_size=16, projection_dim=8),
        text_config=LlamaConfig(**size, vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=4,
    )
    folder.mkdir()
    return _write(folder, LlavaForConditionalGeneration, config, processor)


def _write(folder: Path, kind: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(6)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
