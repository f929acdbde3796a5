"""A check of views that does not know the architecture: does anything outside the layers depend on a layer's place?

A view numbers its layers anew. Whatever a decoder looks up by a layer's number must move with it, and code that nobody here
has read may keep such things anywhere. So, once for each class and configuration, a few tokens run through a view and
through the whole model with the skipped layers undone, and both must say the same.

It runs on the model's own weights: a small model of the same class would be cheaper for a giant, but no general rule
shrinks a configuration, and a few tokens cost a model no more than a few steps of decoding. One canonical route stands for
all, since it moves every layer but by different distances; only where it fails is the route that was asked for tried
itself, which may move nothing (`ee:12`). To make differences visible that a few tokens or fresh weights would hide, both
sides are made of a twin of the model (shells that share its weights), with windows of three tokens, and with the tensors
that have an entry for each layer pulled apart. The model itself, its modes and the random state stay as they are.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from depthdial.errors import InputError, one_line
from depthdial.hf.architectures import DecoderStack, decoder_stack
from depthdial.hf.cache_name import cache_of
from depthdial.hf.facts import WINDOW_FIELDS, config_numbers, config_text, text_config

# Makes a view of some layers, unchecked.
Cut = Callable[[Any, Sequence[int]], Any]

_WINDOW = 3
_N_TOKENS = 6
_ROUNDING = 2e-6  # relative to the largest logit
_PADDING = 2  # columns of the second sequence

_passed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# By kind of model and layers: the largest difference of logits, relative to the largest logit; None where it is right.
_seen: dict[tuple[Any, ...], str | None] = {}


def check_places(base: Any, stack: DecoderStack, layers: Sequence[int], cut: Cut) -> None:
    """InputError if a view of `layers` would not be the model with the other layers undone; see above.

    Models that cannot run here and now pass: on the meta device, offloaded or spread by accelerate, sharded.
    """
    if len(layers) == stack.n_layers or base in _passed or not _can_run(base):
        return
    kind = _kind(base, stack)

    def verdict(tried: tuple[int, ...]) -> str | None:
        if (kind, tried) not in _seen:
            _seen[kind, tried] = _compare(base, tried, cut)
        return _seen[kind, tried]

    if verdict(canonical_layers(stack.n_layers)) is None:
        _passed.add(base)
        return
    reason = verdict(tuple(layers))
    if reason is not None:
        raise InputError(
            f"A view of layers {', '.join(map(str, layers))} of this {type(base).__name__} would not be right, since it "
            f"keeps something by a layer's place outside its layers ({reason}): use a route that "
            "moves no layer, such as ee:N, or check=False to have the view all the same."
        )


def canonical_layers(n_layers: int) -> tuple[int, ...]:
    """Without the first, a middle and the last layer: kept layers move by one or two, and another one comes last."""
    if n_layers < 5:
        return tuple(range(1, n_layers)) or (0,)
    return tuple(i for i in range(1, n_layers - 1) if i != n_layers // 2)


@torch.no_grad()
def _compare(base: Any, layers: tuple[int, ...], cut: Cut) -> str | None:
    n_layers = decoder_stack(base).n_layers
    if len(layers) == n_layers:
        return None
    twin = _twin(base, cut)
    shallow = cut(twin, layers)
    inputs = probe_tokens(base)
    outputs: list[Any] = []
    ours, failure = None, None
    hook = decoder_stack(shallow).layers[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        ours = _logits(shallow, inputs)
    except torch.OutOfMemoryError:
        return None
    except Exception as error:  # judged below: a model that wants more than token ids fails whole as well
        failure = error
    finally:
        hook.remove()
    n_more = len(outputs[0]) - 1 if outputs and isinstance(outputs[0], tuple) else None
    undone = decoder_stack(twin).layers
    for i in set(range(n_layers)) - set(layers):
        undone[i].__dict__["forward"] = functools.partial(_as_it_came, n_more)
    try:
        theirs = _logits(twin, inputs)
    except Exception:
        return None  # nothing to compare with
    if failure is not None:
        return f"it fails with {type(failure).__name__}: {one_line(failure, 120).rstrip('.')}"
    assert ours is not None
    difference = _distance(ours, theirs)
    scale = float(theirs.abs().max())
    if difference > _ROUNDING * scale:  # of float32: in halves, too, the same operations give the same bits
        noise = _distance(theirs, _logits(twin, inputs))  # some kernels add in another order each time
        if not difference <= 4 * noise:
            return f"logits of up to {scale:.3g} differ by {difference:.3g}"
    return _cache_fault(shallow, inputs)


def _cache_fault(shallow: Any, inputs: dict[str, torch.Tensor]) -> str | None:
    """What is wrong with the KV cache that a view fills, if anything: one layer for each of its own, none empty."""
    try:
        cache = cache_of(shallow(**inputs, use_cache=True))
        filled = [layer.get_seq_length() for layer in cache.layers]
    except (IndexError, KeyError) as error:
        return f"its KV cache fails with {type(error).__name__}"
    except Exception:
        return None  # no cache, or one of its own kind
    n_layers = decoder_stack(shallow).n_layers
    is_right = len(filled) == n_layers and 0 not in filled
    return None if is_right else f"of {n_layers} layers, its KV cache has {len(filled) - filled.count(0)} that are filled"


def _twin(base: Any, cut: Cut) -> Any:
    twin = cut(base, range(decoder_stack(base).n_layers)).eval()
    stack = decoder_stack(twin)
    for module in twin.modules():
        for table in ("_forward_hooks", "_forward_pre_hooks"):
            module.__dict__[table].clear()
        _narrow(module.__dict__)
    _narrow(text_config(twin).__dict__)
    owner = twin
    for name in stack.path:
        _pull_apart(owner, stack)
        owner = owner._modules[name]
    return twin


def _narrow(fields: dict[str, Any]) -> None:
    for name in WINDOW_FIELDS:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > _WINDOW:
            fields[name] = _WINDOW


def _pull_apart(owner: nn.Module, stack: DecoderStack) -> None:
    """Make tensors with an entry for each layer unlike one another: in a fresh model they all say the same."""
    tables: list[Any] = [owner._parameters, owner._buffers]
    for child in owner._modules.values():
        beside = isinstance(child, nn.ModuleList | nn.ParameterList | nn.ModuleDict) and len(child) == stack.n_layers
        if child is not None and beside and child is not stack.layers:
            tables += [table for module in child.modules() for table in (module._parameters, module._buffers)]
    place = 0
    for table in tables:
        for name, value in table.items():
            if value is None or not value.is_floating_point() or (table in tables[:2] and stack.n_layers not in value.shape):
                continue
            place += 1
            step = torch.arange(value.numel(), device=value.device).view(value.shape) % 7 + place % 5
            moved = value.detach() + step.to(value.dtype) / 8
            table[name] = nn.Parameter(moved, requires_grad=False) if isinstance(value, nn.Parameter) else moved


def _as_it_came(n_more: int | None, *args: Any, **kwargs: Any) -> Any:
    """The forward of a layer that is undone: its states as they came, and nothing in the places behind."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return hidden if n_more is None else (hidden, *(None,) * n_more)


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    out = model(**inputs, use_cache=False, return_dict=True)
    found = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    return found.float()[inputs["attention_mask"].bool()]


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if not torch.equal(torch.isfinite(ours), torch.isfinite(theirs)):
        return float("inf")
    return float((ours - theirs).nan_to_num(0.0, 0.0, 0.0).abs().max())


def probe_tokens(base: Any) -> dict[str, torch.Tensor]:
    """Two sequences of plain tokens, the second padded on the left."""
    weight = base.get_input_embeddings().weight
    special = config_numbers(base.config, lambda name: "token" in name)
    plain = [i for i in range(min(len(weight), 4096)) if i not in special][: 2 * _N_TOKENS] or [0]
    ids = torch.tensor([plain[i % len(plain)] for i in range(2 * _N_TOKENS)], device=weight.device).view(2, -1)
    mask = torch.ones_like(ids)
    mask[1, :_PADDING] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _kind(base: Any, stack: DecoderStack) -> tuple[Any, ...]:
    """Class and configuration, and the classes and attributes on the way to the layers: anyone may change an instance."""
    owners = [base.get_submodule(".".join(stack.path[:n])) for n in range(len(stack.path))]
    return (
        tuple(type(owner) for owner in owners),
        tuple(tuple(sorted((*owner.__dict__, *owner._modules, *owner._parameters, *owner._buffers))) for owner in owners),
        tuple(type(layer) for layer in stack.layers),
        tuple(repr(v) for owner in owners for v in owner.__dict__.values() if isinstance(v, list | tuple)),
        str(base.dtype),
        hash(config_text(base)),
    )


def _can_run(base: Any) -> bool:
    """Whether all weights are whole and at hand, on one device."""
    if any("_hf_hook" in module.__dict__ for module in base.modules()):
        return False
    parameters = list(base.parameters())
    plain = all(type(p).__name__ != "DTensor" and p.numel() and not hasattr(p, "ds_id") for p in parameters)
    return plain and len({p.device for p in parameters}) == 1 and parameters[0].device.type != "meta"
