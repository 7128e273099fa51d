"""Byte-level tokenizers with the conversation templates that language models were published with."""

from __future__ import annotations

from typing import Any

__all__ = ["MISTRAL_TEMPLATE", "QWEN3_TEMPLATE", "mistral_tokenizer", "qwen_tokenizer"]

QWEN3_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = message.content[0].text %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Qwen3's, without tools, earlier answers and pictures."""

MISTRAL_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message.content[0].text + '[/SYSTEM_PROMPT]' }}
    {%- elif message.role == 'user' %}
        {{- '[INST]' + message.content[0].text + '[/INST]' }}
    {%- endif %}
{%- endfor %}
"""
"""Mistral Small 3.1's, without answers and pictures."""


def _bytes() -> dict[str, int]:
    from tokenizers import pre_tokenizers

    return {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def qwen_tokenizer() -> Any:
    """Qwen3's tokenizer without merges: each byte is a token."""
    from transformers import Qwen2TokenizerFast

    tokenizer = Qwen2TokenizerFast(vocab=_bytes() | {"<|endoftext|>": 256}, merges=[], model_max_length=131072)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN3_TEMPLATE
    return tokenizer


def mistral_tokenizer() -> Any:
    """Mistral's tokenizer without merges; it begins each text with a mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    marks += ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    letters = {letter: place + len(marks) for letter, place in _bytes().items()}
    model = Tokenizer(models.BPE(vocab={mark: place for place, mark in enumerate(marks)} | letters, merges=[]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [mark for mark in marks if mark[0] == "["]})
    tokenizer.chat_template, tokenizer.model_max_length = MISTRAL_TEMPLATE, 131072
    return tokenizer
