"""Views with the tools around transformers: accelerate, compilation, FSDP, pipelines, vision-language models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
    pipeline,
)

from depthdial.views.view import view
from tests.tiny import VOCAB, cut_by_hand, tiny
from tests.views.test_view import FULL, assert_same, padded_prompts, states, written
from tests.views.test_view_shares import ROUTE, assert_same_copies, assert_untouched, copies, everything


# transformers 5.10 warns of the device of any offloaded model's weights; later ones do not.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_a_base_with_weights_offloaded_by_accelerate(how: str, tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload

    base = tiny("llama")
    expected, expected_text = states(view(tiny("llama"), ROUTE)), written(view(tiny("llama"), ROUTE))
    if how == "cpu":
        cpu_offload(base, execution_device=torch.device("cpu"), offload_buffers=True)
    else:
        disk_offload(base, tmp_path, execution_device=torch.device("cpu"))
    assert base.model.layers[0].mlp.up_proj.weight.is_meta
    shallow = view(base, ROUTE)
    assert_same(states(shallow), expected)
    assert_same(written(shallow), expected_text)
    assert all(p.is_meta for p in shallow.model.layers.parameters())


def test_a_base_dispatched_by_accelerate(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    expected = states(view(tiny("llama"), ROUTE))
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in FULL}
    base = dispatch_model(tiny("llama"), places, main_device="cpu", offload_dir=tmp_path / "weights", force_hooks=True)
    before = everything(base)
    shallow = view(base, ROUTE)
    assert_same(states(shallow), expected)
    assert_untouched(before, base)
    with pytest.raises(RuntimeError, match="can't move a model"):
        base.to("cpu")
    assert "to" not in vars(shallow)  # the base's own guard would move the base and hand it back


# transformers asks every time for enough memory.
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")
def test_an_offloaded_view_can_be_saved(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    expected = states(view(tiny("llama"), ROUTE))
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" for i in FULL}
    base = dispatch_model(tiny("llama"), places, main_device="cpu", offload_dir=tmp_path / "weights", force_hooks=True)
    view(base, ROUTE).save_pretrained(tmp_path / "saved")
    for ours, theirs in zip(states(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_view_drafts_for_its_base() -> None:
    base = tiny("llama")
    prompt = padded_prompts()["input_ids"][:1]
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    drafted = base.generate(prompt, assistant_model=view(base, (0, 1, 2, 3, 5)), **settings)
    assert torch.equal(drafted, base.generate(prompt, **settings))


@pytest.mark.slow
def test_compiling_the_base_does_not_make_the_view_run_it() -> None:
    base = tiny("llama")
    expected = states(view(base, ROUTE))
    base.compile(backend="eager")
    states(base)
    assert_same(states(view(base, ROUTE)), expected)


def test_compiled_decoding_of_the_base_does_not_serve_the_view() -> None:
    from transformers import CompileConfig

    base = tiny("llama")
    settings = CompileConfig(backend="eager", mode=None, fullgraph=False)
    ran = base.get_compiled_call(settings)
    shallow = view(base, ROUTE)
    assert shallow.get_compiled_call(settings) is not ran
    assert "_compiled_call" in vars(base)


def test_a_view_of_a_compiled_model() -> None:
    base = tiny("llama")
    assert_same(states(view(torch.compile(base, backend="eager"), ROUTE)), states(view(base, ROUTE)))


@pytest.mark.slow
def test_routes_of_one_length_share_a_compiled_graph() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    base, counter = tiny("llama"), CompileCounter()
    ids = padded_prompts()["input_ids"]
    with torch.no_grad():
        for layers in ((0, 1, 2), (1, 2, 4), (3, 4, 5)):
            shallow = view(base, layers)
            compiled = torch.compile(shallow, backend=counter)
            torch.testing.assert_close(compiled(ids, use_cache=False).logits, shallow(ids, use_cache=False).logits)
            assert counter.frame_count == 1
        torch.compile(view(base, (0, 1)), backend=counter)(ids, use_cache=False)
        assert counter.frame_count == 2
    torch._dynamo.reset()


@pytest.fixture
def mesh() -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_base_sharded_by_fsdp(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    expected = states(view(tiny("llama"), ROUTE))
    base = tiny("llama")
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(base, mesh=mesh)
    for _ in range(2):  # gathered, put back, gathered again
        assert_same(states(view(base, ROUTE)), expected)
    assert_same(states(base), states(tiny("llama")))


def test_the_text_generation_pipeline(tokenizer: Any) -> None:
    base = tiny("llama")
    shallow, cut = view(base, ROUTE), cut_by_hand(base, "llama", ROUTE)
    ours, theirs = (
        pipeline("text-generation", model=model, tokenizer=tokenizer)(
            ["the cat sat", "a dog"], max_new_tokens=5, do_sample=False, batch_size=2
        )
        for model in (shallow, cut)
    )
    assert ours == theirs
    assert len(ours[0][0]["generated_text"].split()) > 3


def llava(n_layers: int) -> PreTrainedModel:
    text = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=n_layers,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2, image_size=4, patch_size=2
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=VOCAB - 1, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def gemma3(n_layers: int) -> PreTrainedModel:
    kinds = [
        "sliding_attention",
        "full_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
        "full_attention",
    ]
    kinds = kinds if n_layers == 6 else [kinds[i] for i in (0, 2, 3)]
    text = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=n_layers,
        sliding_window=4,
        pad_token_id=0,
        layer_types=kinds,
    )
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2, image_size=4, patch_size=2
    )
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=VOCAB - 1)
    return Gemma3ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("build", [llava, gemma3])
def test_the_text_of_a_vision_language_model(build: Any) -> None:
    torch.manual_seed(0)
    base, cut = build(6), build(3)
    with torch.no_grad():
        for p in base.parameters():
            p.add_(torch.randn_like(p), alpha=0.15)
    layers, weights = (0, 2, 3), {}
    for key, value in base.state_dict().items():
        head, found, rest = key.partition("language_model.layers.")
        if not found:
            weights[key] = value
        elif int(rest[0]) in layers:
            weights[f"{head}{found}{layers.index(int(rest[0]))}{rest[1:]}"] = value
    cut.load_state_dict(weights)
    before, values = everything(base), copies(base)
    shallow = view(base, layers)
    assert len(states(shallow)) == 3 + 2
    assert_same(states(shallow), states(cut))
    assert_same(written(shallow), written(cut))
    shallow.config.vision_config.hidden_size = 1
    assert_untouched(before, base)
    assert_same_copies(values, base)
    assert shallow.config.text_config.num_hidden_layers == 3
    assert shallow.get_submodule("model.language_model").config is shallow.config.text_config
