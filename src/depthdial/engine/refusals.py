"""Options of transformers that `dd.generate` does not honour, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from depthdial.hf.cache_name import CACHE_NAMES


@dataclass(frozen=True)
class Refusal:
    """Why an option is not honoured.

    Attributes:
        neutral: values with which it asks for nothing; None does, and False unless True is one of them.
        changes_answers: whether transformers would give other tokens with it.
    """

    why: str
    neutral: tuple[Any, ...] = ()
    changes_answers: bool = False


_BEAMS = Refusal("is for beam search, and generate makes each answer token by token", (1,), True)
_SPEED = Refusal("is for assisted decoding, which takes transformers' own generate on the whole model")
_OUTPUT = Refusal("asks for another output, and generate returns one Generation for each answer")
_CACHE = Refusal("is about the KV cache, which generate makes itself: a dynamic one, of the route's layers", ("dynamic",))
_OTHERS = Refusal("is not for decoder-only models")

REFUSED: dict[str, Refusal] = {
    **dict.fromkeys(("num_beams", "num_beam_groups"), _BEAMS),
    **dict.fromkeys(("constraints", "force_words_ids"), _BEAMS),
    **dict.fromkeys(("early_stopping", "diversity_penalty"), Refusal(_BEAMS.why)),
    "length_penalty": Refusal(_BEAMS.why, (1,)),
    "penalty_alpha": Refusal("is for contrastive search, which looks at every layer's states", (0,), True),
    "dola_layers": Refusal("contrasts layers of the full model, which a route does not run", (), True),
    "low_memory": Refusal("is for contrastive search"),
    "token_healing": Refusal("changes the last tokens of the prompt", (), True),
    "max_time": Refusal(
        "ends answers by the clock, so that they would depend on their neighbours (max_new_tokens does not)",
        (),
        True,
    ),
    **dict.fromkeys(
        ("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_model", "assistant_tokenizer"), _SPEED
    ),
    **dict.fromkeys(("assistant_early_exit", "assistant_confidence_threshold", "assistant_lookbehind"), _SPEED),
    **dict.fromkeys(("target_lookbehind", "num_assistant_tokens", "num_assistant_tokens_schedule"), _SPEED),
    **dict.fromkeys(("is_assistant", "use_mtp", "speculation_type", "assistant_ensemble_weight"), _SPEED),
    "use_cache": Refusal("is about the KV cache, without which a route cannot continue on its prompt", (True,)),
    **dict.fromkeys((*CACHE_NAMES, "cache_implementation", "cache_config", "max_cache_len"), _CACHE),
    **dict.fromkeys(
        ("compile_config", "disable_compile", "continuous_batching_config"), Refusal("is about compiled passes")
    ),
    "return_dict_in_generate": _OUTPUT,
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), _OUTPUT),
    "decoder_start_token_id": _OTHERS,
    "prefix_allowed_tokens_fn": Refusal("is for beam search (logits_processor takes a PrefixConstrainedLogitsProcessor)"),
    "negative_prompt_ids": Refusal("is another prompt to be guided away from (guidance_scale alone takes none)"),
    "synced_gpus": Refusal("is for transformers' own generate on sharded models"),
    "custom_generate": Refusal("replaces transformers' own generate, which is not what runs here"),
    "tokenizer": Refusal("is given already, as the second argument"),
    **dict.fromkeys(("input_ids", "inputs", "attention_mask", "inputs_embeds"), Refusal("is made of the prompts")),
}
