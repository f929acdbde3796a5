"""Requests as pydantic models. They list every field of OpenAI's and vLLM's requests: a field that is known and not
supported is refused unless it asks for what happens anyway, and so is a field that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from depthdial.serve.errors import ApiError

MOST_LOGPROBS = 20
MOST_STOPS = 16
_SEED = 2**63

# Fields without effect here, by the values that ask for nothing else than what happens.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
    "best_of": (1,),
    # vLLM's
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": (),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "request_id": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structural_tag": (),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


class _Strict(BaseModel):
    """No field passes that is not listed, and no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    include_obfuscation: bool | None = None


class SamplingRequest(_Strict):
    """What requests for chats and for completions have in common."""

    model: str | None = Field(None, description="An id of /v1/models, or one with any depth: MODEL:DEPTH.")
    depth: str | int | float | None = Field(
        None, description="Which layers run: full, 80%, 24, uls:50%, 0-3,8,12-29, lossless, or a name of /v1/models."
    )
    reasoning_effort: str | None = Field(None, description="The depth that the server has for low, medium or high.")
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="Default: 1; 0: greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-_SEED, lt=_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Identifiers, which are read by nobody here and change no answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # Known, and not supported.
    metadata: Any = None
    service_tier: Any = None
    store: Any = None
    best_of: Any = None
    add_special_tokens: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    cache_salt: Any = None
    guided_choice: Any = None
    guided_decoding_backend: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_whitespace_pattern: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    priority: Any = None
    prompt_logprobs: Any = None
    request_id: Any = None
    response_format: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    skip_special_tokens: Any = None
    spaces_between_special_tokens: Any = None
    structural_tag: Any = None
    structured_outputs: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    vllm_xargs: Any = None

    def refuse_unsupported(self) -> None:
        """ApiError for a field that asks for something that does not happen here."""
        for name in self.model_fields_set & _NEUTRAL.keys():
            _refuse(name, getattr(self, name))
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "The field stream_options is for streams: give stream=true too.", param="stream_options", code="invalid"
            )
        if any(not stop for stop in self.stops):
            raise ApiError(400, "A stop string is empty: leave it out.", param="stop", code="invalid")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    """A message. What a client got in an answer may come back, but for calls of tools."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    reasoning: None = None
    reasoning_content: None = None
    refusal: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def as_conversation(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: Literal[False] | None = None
    audio: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    documents: Any = None
    function_call: Any = None
    functions: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400, "The field top_logprobs needs logprobs=true: give both.", param="top_logprobs", code="invalid"
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                400,
                f"The fields max_tokens={self.max_tokens} and max_completion_tokens={self.max_completion_tokens} are the "
                "same limit: give one of them.",
                param="max_tokens",
                code="invalid",
            )
        goes_on = self.messages[-1].role == "assistant"
        for name, value, natural in (
            ("continue_final_message", self.continue_final_message, goes_on),
            ("add_generation_prompt", self.add_generation_prompt, not goes_on),
        ):
            if value is not None and value is not natural:
                raise ApiError(
                    400,
                    f"The field {name}={str(value).lower()} does not fit the last message: one of the assistant's is "
                    "continued, any other is answered.",
                    param=name,
                    code="unsupported_value",
                )

    @property
    def n_logprobs(self) -> int | None:
        """As `dd.generate` takes it."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    prompt_embeds: Any = None
    suffix: Any = None

    @property
    def n_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default

    @property
    def prompts(self) -> list[str | list[int]]:
        """One text or list of tokens for each prompt."""
        given: Any = self.prompt
        return list(given) if isinstance(given, list) and not isinstance(given[0], int) else [given]


class TokenizeRequest(_Strict):
    """`POST /tokenize`, as of vLLM."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(None, description="Of a prompt. Default: true, as completions have them.")


class DetokenizeRequest(_Strict):
    """`POST /detokenize`, as of vLLM."""

    model: str | None = None
    tokens: list[int]


def _refuse(name: str, value: Any) -> None:
    if value is None or any(type(value) is type(one) and value == one for one in (*_NEUTRAL[name], *_as_floats(name))):
        return
    told = " ".join(repr(value).split())
    raise ApiError(
        400,
        f"The field {name}={told if len(told) <= 60 else told[:57] + '...'} is not supported by this server: leave it out.",
        param=name,
        code="unsupported_parameter",
    )


def _as_floats(name: str) -> tuple[float, ...]:
    return tuple(float(one) for one in _NEUTRAL[name] if type(one) is int)
