"""What the numbers of families of diffusers pipelines depend on and their weights do not tell."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

from veneer.family.pipeline_text import PipelineText

__all__ = ["PipelineSettings"]

_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""Of a scheduler's settings, those of the forward process; all others are about sampling."""
_TEXT = (
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "dense_act_fn",
    "layer_norm_epsilon",
    "relative_attention_max_distance",
    "rms_norm_eps",
    "rope_parameters",
    "num_key_value_heads",
    "layer_types",
    "sliding_window",
    "attn_logit_softcapping",
    "query_pre_attn_scalar",
)
"""Of a text encoder's settings, those that no weight's shape tells: CLIP's, T5's further ones, language models'."""
_USUAL_SIDE = "right"  # on which texts are filled up
_LONGEST = 60  # characters of a setting that is written out; of a longer one it is a hash


class PipelineSettings(PipelineText):
    """The settings of a family, by which a run knows the base that it was trained on."""

    @property
    def settings(self) -> dict[str, str]:
        """The forward process, the tokenizers, and of each network what its class would not take by itself."""
        values: dict[str, Any] = {f"scheduler.{key}": self._parts["scheduler"].config.get(key) for key in _SCHEDULE}
        for name in self._text_encoders:
            config = self._text_config(name)
            values |= {f"{name}.{key}": getattr(config, key, None) for key in _TEXT}
        for name in (self.denoiser, "vae", *self.text_connectors):
            values |= {f"{name}.{key}": value for key, value in _chosen(self._parts[name]).items()}
        for name, tokenizer in self._tokenizers.items():
            part = self.tokenizers[name]
            values[f"{part}.vocabulary"] = sorted(tokenizer.get_vocab().items())
            values[f"{part}.length"] = tokenizer.model_max_length
            values[f"{part}.padding"] = tokenizer.pad_token_id
            values[f"{part}.chat_template"] = getattr(tokenizer, "chat_template", None)
            side = getattr(tokenizer, "padding_side", _USUAL_SIDE)
            values[f"{part}.padding_side"] = None if side == _USUAL_SIDE else side
        return {key: _short(value) for key, value in values.items() if value is not None}


def _chosen(network: Any) -> dict[str, Any]:
    """Return a network's settings but those at its class's default: new ones of a later release leave these alone."""
    defaults = {name: one.default for name, one in inspect.signature(type(network)).parameters.items()}
    values = {key: value for key, value in network.config.items() if not key.startswith("_") and key != "sample_size"}
    return {key: value for key, value in values.items() if _json(value) != _json(defaults.get(key))}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= _LONGEST else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
