"""Tiny random models, tokenizers and tasks, built in code; and the dense reference that routes are held against."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network, whatever it calls

import pytest
import torch

from depthdial.measure.tasks import Example, Task

# Tiny tensors: threads cost more than they give, the more so beside other processes.
torch.set_num_threads(1)

WORDS = (
    *("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "to", "and", "of", "in", "it", "is", "was", "for"),
    *("with", "as", "by", "at", "one", "two", "three", "four", "five", "six"),
)


@pytest.fixture
def tokenizer():
    """A word-level tokenizer with left padding, an end token and no chat template."""
    return make_tokenizer()


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)


@pytest.fixture
def model():
    """A random Llama of 6 layers with grouped-query attention, whose layers matter: weights are large for its size."""
    return make_llama()


def make_llama(n_layers: int = 6, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def with_lora() -> Callable:
    """Puts a random LoRA on a model, in PEFT's wrapper: one that changes what the model says, and changes it little."""

    def wrap(model, scale: float = 0.5):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, lora_alpha=4 * scale, target_modules="all-linear", init_lora_weights=False)
        torch.manual_seed(5)
        with warnings.catch_warnings():  # PEFT asks transformers for what a later transformers calls deprecated
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, config)

    return wrap


@pytest.fixture
def small_task() -> Task:
    """Seven sequences of unequal length, one without a reference."""
    prompts = [
        "the cat",
        "a dog sat on the mat",
        "one two three",
        "it was",
        "the dog ran to the cat and sat",
        "six",
        "a a a",
    ]
    references = ["sat on the mat", "and ran", "four five six", "is", "in the mat", None, "cat dog"]
    return make_task(prompts, references)


def make_task(prompts, references, name: str = "small") -> Task:
    examples = tuple(
        Example(id=f"{name}-{i}", instruction=prompt, document="", reference=reference)
        for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True))
    )
    return Task(
        name=name,
        split="test",
        origin="tests",
        form="prompt",
        examples=examples,
        template="auto",
        max_prompt_tokens=None,
        max_response_tokens=None,
        seed=0,
        source_fingerprint="0" * 64,
    )


@pytest.fixture
def dense_reference() -> Callable:
    """Hidden states and logits of a Llama whose prompt runs every layer and whose response only a route's.

    Written out layer by layer, without cache and without view: every layer is computed for every token and then masked.
    Takes one sequence at a time, so that it knows no padding either.
    """

    def run(model, prompt, response, route):
        ids = torch.tensor([[*prompt, *response]])
        n_prompt, n = len(prompt), ids.shape[1]
        core = model.model
        hidden = core.embed_tokens(ids)
        places = torch.arange(n)[None]
        rotary = core.rotary_emb(hidden, places)
        mask = torch.full((n, n), torch.finfo(hidden.dtype).min).triu(1)[None, None]
        states = [hidden]
        with torch.no_grad():
            for i, layer in enumerate(core.layers):
                out = layer(hidden, attention_mask=mask, position_ids=places, position_embeddings=rotary)
                out = out[0] if isinstance(out, tuple) else out
                hidden = out if i in route.layers else torch.cat([out[:, :n_prompt], hidden[:, n_prompt:]], dim=1)
                states.append(hidden)
            logits = model.lm_head(core.norm(hidden))
        return [state[0] for state in states], core.norm(hidden)[0].detach(), logits[0]

    return run


@pytest.fixture
def weights_of() -> Callable:
    """A copy of every tensor and flag that somebody's model must still have afterwards."""

    def snapshot(model):
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        flags = {name: (module.training, sorted(module.__dict__)) for name, module in model.named_modules()}
        return tensors, flags, model.config.to_dict()

    return snapshot


@pytest.fixture
def assert_same() -> Callable:
    def compare(before, after):
        assert before[0].keys() == after[0].keys()
        assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
        assert before[1:] == after[1:]

    return compare


@pytest.fixture
def save_lessons(model, tokenizer, tmp_path):
    """Saves the tiny model as base/ and sequences to learn from as lessons.jsonl; gives the folder that holds both."""

    def save(numbers: tuple[str, ...] = ("one", "two")):
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        rows = [
            {"prompt": f"{n} {a} {v}", "reference": f"{v} the {a}"}
            for n in numbers
            for a in ("cat", "dog")
            for v in ("sat", "ran", "was")
        ]
        (tmp_path / "lessons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return save


@pytest.fixture
def command_line(capsys):
    """Runs `depthdial` with arguments; gives (exit status, standard output, standard error)."""
    from depthdial.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with mock.patch.object(sys, "argv", ["depthdial", *map(str, arguments)]):
            try:
                main()
                status = 0
            except SystemExit as done:
                status = int(done.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
