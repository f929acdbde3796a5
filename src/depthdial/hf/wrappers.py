"""The automatic class of transformers that loads a checkpoint: causal models, or the text part of vision-language models."""

from __future__ import annotations

from typing import Any


def auto_class(config: Any) -> Any | None:
    """The automatic class for a configuration; None where transformers has no decoder-only model of it.

    A vision-language model (LLaVA, Qwen2.5-VL, SmolVLM, ..) is loaded whole, and given text alone it is its text decoder.
    """
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    text = config.get_text_config(decoder=True)
    if text is config or getattr(text, "is_encoder_decoder", False):
        return None
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return None
