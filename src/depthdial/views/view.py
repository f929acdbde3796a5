"""The depth view: a model of k layers made of another model's own layers, without copying or changing any weight.

A view is a tree of shallow copies ("shells") of the base's modules: each has its own tables of sub-modules, hooks and
attributes and the base's own tensors. So the layers can be numbered anew (a KV cache of k layers, masks, sliding windows
and rotary types all follow from the number), `train()`, adapters and hooks put on the view stay on the view, and making
one takes milliseconds. Swapping the layer list in place instead is silently wrong with padding or without layer 0, where
the cache's length is read; forward hooks that undo a layer still compute it.

Source: layer skipping after arXiv 2410.20022, section 3; the mechanism is this project's own.
"""

from __future__ import annotations

import copy
import functools
import numbers
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from depthdial.errors import InputError
from depthdial.hf.adapter import warn_if_outside
from depthdial.hf.architectures import (
    LAYER_INDEX_ATTRIBUTES,
    DecoderStack,
    cut_config,
    decoder_stack,
    unwrap,
    why_not_saved,
)
from depthdial.hf.facts import note_untied
from depthdial.hf.untouched import adapter_modules, is_adapter_module
from depthdial.routes import RandomRoute, Route, require_depth
from depthdial.views.cache import watch_cache
from depthdial.views.places import follow_places
from depthdial.views.probe import check_places
from depthdial.views.weights import SHARED_ATTRIBUTE, Children, Shared, watch, writers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ROUTE_ATTRIBUTE = "depthdial_route"
# Set on a view that cannot be cut again: what it does, in the words of a sentence.
UNCUT_ATTRIBUTE = "depthdial_uncut"
# On the model of a session, whose views are made once; see `remember_views`.
_VIEWS_ATTRIBUTE = "depthdial_views"
_MOST_VIEWS = 64

_TABLES = frozenset({dict, list, set, OrderedDict})
_FUNCTIONS = frozenset({types.MethodType, types.FunctionType, functools.partial})


def view(model: Any, route: Route | str | Sequence[int], *, check: bool = True) -> PreTrainedModel:
    """A PreTrainedModel that runs only the layers of `route`, sharing every weight with `model`.

    It is a model of `len(route.layers)` layers in every respect (generate, pipelines, caches, hidden states,
    `save_pretrained`) and takes milliseconds to make, so make one whenever it is needed. It is a snapshot: hooks, adapters
    and `train()` on it do not reach the base, nor those put on the base later the view.

    Weights are shared until a method of the view, or of a module of it, changes them: `to`, `half`, `requires_grad_`,
    `resize_token_embeddings`, `load_state_dict`, initializing, adapters (PEFT's wrapper too) and merging first give the
    view parameters of its own, in memory of their own where numbers change. What is done to a parameter itself is done to
    the base's: gradients fill it, `zero_grad` clears them, an optimizer's step on it trains both.

    Args:
        model: a decoder-only model, another view, or a PEFT-wrapped model or one with adapters added (the view
            then carries the adapter layers, and `save_pretrained` writes them merged).
        route: a Route for this model's depth, its text (`"uls:12"`), or layer indices.
        check: at the first view of a kind of model, run a few tokens through the view and through the whole model with the
            skipped layers undone (see `probe`). It takes as long as a few steps of decoding; later views cost nothing.

    Raises:
        InputError: (a ValueError) if the route does not fit the model, is a random rule, the model has no single stack
            of decoder layers, or the check finds that it would not be right. `save_pretrained` raises it where a folder
            could not keep what the layers are (GPT-2's attention scaled by the layer's number). When called: for a KV cache
            of another number of layers.

    Warns:
        RouteWarning: once, if the model has an adapter with a card (see `dd.adapter_card`) that was not trained for the
            route.

    Example:
        >>> shallow = dd.view(model, "0,3,5")
        >>> shallow.get_input_embeddings().weight is model.get_input_embeddings().weight
        True
    """
    shallow = quiet_view(model, route, check=check)
    warn_if_outside(model, shallow.__dict__[ROUTE_ATTRIBUTE])
    return shallow


def quiet_view(model: Any, route: Route | str | Sequence[int], *, check: bool = True) -> PreTrainedModel:
    """`view` without its warning: for code that tries many routes, or has warned of this one before."""
    base = unwrap(model)
    if UNCUT_ATTRIBUTE in base.__dict__:
        raise InputError(
            f"This view {base.__dict__[UNCUT_ATTRIBUTE]}, so it cannot be cut again: make the view of its base."
        )
    stack = decoder_stack(base)
    route = as_route(route, stack.n_layers)
    # FSDP2 swaps sharded for gathered parameters in the tables of the modules that it knows: a view must see the swap.
    is_fsdp = any(cls.__name__ == "FSDPModule" for cls in type(base).__mro__)
    if check and not is_fsdp:
        check_places(base, stack, route.layers, _cut)
    top = _cut(base, route.layers, share_parameters=is_fsdp)
    if getattr(base, "generation_config", None) is not None:
        top.__dict__["generation_config"] = copy.deepcopy(base.generation_config)
    top.__dict__[ROUTE_ATTRIBUTE] = route
    top.__dict__.pop(_VIEWS_ATTRIBUTE, None)
    watch_cache(top.get_submodule(".".join(stack.path[:-1])))
    save = _save_merged if adapter_modules(base) else _save
    top.__dict__["save_pretrained"] = functools.partial(save, top)  # and no method, which could not be pickled
    return top


def remember_views(model: PreTrainedModel) -> None:
    """Have `known_view` make each view of a model once: for one that is never changed, nor are its views."""
    model.__dict__[_VIEWS_ATTRIBUTE] = {}


def known_view(model: Any, route: Route, made_by: Callable[[Any, Route], PreTrainedModel] | None = None) -> PreTrainedModel:
    """A view that is not to be changed: the one that was made before, where the model remembers it.

    Args:
        made_by: makes it, where it is more than a plain view; views by unlike makers are kept apart.
    """
    make = made_by or quiet_view
    made = model.__dict__.get(_VIEWS_ATTRIBUTE)
    if made is None:
        return make(model, route)
    if (route, make) not in made:
        if len(made) >= _MOST_VIEWS:
            made.pop(next(iter(made)))
        made[route, make] = make(model, route)
    return made[route, make]


def _cut(base: PreTrainedModel, layers: Sequence[int], *, share_parameters: bool = False) -> PreTrainedModel:
    stack = decoder_stack(base)
    top = _Copier(cut_config(base.config, layers), share_parameters=share_parameters).model(base, stack, layers)
    follow_places(top.get_submodule(".".join(stack.path[:-1])), layers, stack.n_layers)
    return top


def as_route(route: Route | str | Sequence[int], n_layers: int) -> Route:
    """`route` as a Route of a model of `n_layers` layers; InputError if it does not fit or is a random rule."""
    if isinstance(route, str | numbers.Real):  # a number is refused with what to write instead
        parsed = Route.parse(str(route), n_layers)
    else:
        parsed = route if isinstance(route, Route | RandomRoute) else Route(route, n_layers)  # type: ignore[arg-type]
    if isinstance(parsed, RandomRoute):
        raise InputError(f"{parsed.name!r} is a rule, not one route: draw one with .for_sequence(id) first.")
    return require_depth(parsed, n_layers)


def route_of(model: nn.Module) -> Route | None:
    """The route of a view; None for any other model."""
    return model.__dict__.get(ROUTE_ATTRIBUTE)


class _Copier:
    """Makes the shells of one view."""

    def __init__(self, configs: dict[int, PreTrainedConfig], *, share_parameters: bool) -> None:
        self._configs = configs
        self._share_parameters = share_parameters
        self._shared = Shared()

    def model(self, base: PreTrainedModel, stack: DecoderStack, layers: Sequence[int]) -> PreTrainedModel:
        # The list is copied first, as if it had been met already, so that the walk over the rest finds its copy.
        cut = self._shell(stack.layers)
        kept: dict[str, nn.Module | None] = {
            str(i): self._tree(stack.layers[old], {}, index=i) for i, old in enumerate(layers)
        }
        cut.__dict__["_modules"] = Children(kept, self._shared)
        top = self._tree(base, {id(stack.layers): cut}, index=None)
        top.__dict__[SHARED_ATTRIBUTE] = self._shared
        self._shared.top = top
        if self._share_parameters:
            self._shared.has_tables = False
            self._shared.refusal = (
                f"This view of {type(base).__name__} cannot have weights of its own, since FSDP has sharded the model: "
                "change the model before it is sharded, and make the view after."
            )
        return top  # type: ignore[return-value]

    def _tree(self, module: nn.Module, done: dict[int, nn.Module], index: int | None) -> nn.Module:
        # `done` keeps a module that stands in two places one module.
        shell = done.get(id(module))
        if shell is not None:
            return shell
        shell = done[id(module)] = self._shell(module)
        if index is not None:
            for name in LAYER_INDEX_ATTRIBUTES:
                if isinstance(shell.__dict__.get(name), int):
                    shell.__dict__[name] = index
        children = shell.__dict__["_modules"]
        for name, child in children.items():
            if child is not None:
                children[name] = self._tree(child, done, index)
        if children:
            shell.__dict__["_modules"] = Children(children, self._shared)
        return shell

    def _shell(self, module: nn.Module) -> nn.Module:
        # Not type(module)(): constructors allocate weights, and FSDP's classes override __new__.
        shell = object.__new__(type(module))
        state = module.__dict__.copy()
        replaced = writers(type(module))  # by `watch`, below; to bind them first took most of the time of a view of a view
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _TABLES:
                # Its own tables of sub-modules, buffers, hooks, adapter scales, ..: the tensors in them are not copied.
                state[name] = value.copy()
            elif kind in _FUNCTIONS and name not in replaced:
                if _wraps_method_of(module, value):
                    del state[name]
                else:
                    state[name] = _rebind(value, module, shell)
        if self._share_parameters:
            state["_parameters"] = module.__dict__["_parameters"]
        if type(state["_modules"]) is Children:  # of a view of a view
            state["_modules"] = dict(state["_modules"])
        self._shared.note(state["_parameters"])
        watch(state, shell, self._shared)
        config = state.get("config")
        if config is not None:
            state["config"] = self._configs.get(id(config), config)
        object.__setattr__(shell, "__dict__", state)  # past nn.Module's own __setattr__, which takes longer than the rest
        return shell


def _wraps_method_of(module: nn.Module, function: Any) -> bool:
    # What `compile()` and compiled decoding leave on a model, and accelerate's `to`: kept, it would run the whole base in
    # the view's place; without it the class's own method serves.
    wrapped = getattr(function, "__wrapped__", None)
    return isinstance(function, types.FunctionType) and getattr(wrapped, "__self__", None) is module


def _rebind(function: Any, old: nn.Module, new: nn.Module) -> Any:
    """An instance's own forward (as accelerate's hooks install it), bound to `new` where it was bound to `old`."""
    if isinstance(function, types.MethodType) and function.__self__ is old:
        return types.MethodType(function.__func__, new)
    if isinstance(function, functools.partial):
        args = tuple(new if arg is old else arg for arg in function.args)
        rebound = functools.partial(_rebind(function.func, old, new), *args, **function.keywords)
        rebound.__dict__.update(function.__dict__)
        return rebound
    return function


def _save(top: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """`save_pretrained` of a view: a plain folder of its layers, or InputError where that would not be the same model."""
    if UNCUT_ATTRIBUTE in top.__dict__:
        raise InputError(
            f"This view {top.__dict__[UNCUT_ATTRIBUTE]}, which a saved folder would not do: save dd.view(model, route), "
            "whose prompts run on the route too, or use dd.export, which measures what that costs."
        )
    # With an adapter added to the view itself, transformers writes that adapter alone, and no layers.
    reason = None if getattr(top, "_hf_peft_config_loaded", False) else why_not_saved(top)
    if reason is not None:
        raise InputError(f"This view of {type(top).__name__} cannot be saved: {reason}.")
    type(top).save_pretrained(top, *args, **kwargs)


def _save_merged(top: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """`save_pretrained` of a view whose base has adapters: they are merged into a copy, which any loader reads."""
    _save(top if UNCUT_ATTRIBUTE in top.__dict__ else merged_copy(top), *args, **kwargs)


def merged_copy(top: PreTrainedModel) -> PreTrainedModel:
    """A view as a model of its own, in memory of its own, with the adapters that are on merged into its weights."""
    plain = copy.deepcopy(top)
    _untie_adapted(plain)
    _unload_adapters(plain)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        plain.__dict__.pop(name, None)
    plain.__dict__["save_pretrained"] = functools.partial(_save, plain)
    return plain


def _untie_adapted(model: PreTrainedModel) -> None:
    # Merging into the one of two tied modules that is adapted would change the other too.
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None not in ends and ends[0].weight is ends[1].weight and any(map(is_adapter_module, ends)):
        head = ends[1].get_base_layer() if hasattr(ends[1], "get_base_layer") else ends[1]
        head.weight = nn.Parameter(head.weight.detach().clone())
        note_untied(model)


def _unload_adapters(parent: nn.Module) -> None:
    for name, child in parent._modules.items():
        if child is not None:
            parent._modules[name] = plain = _without_adapter(child)
            _unload_adapters(plain)


def _without_adapter(module: Any) -> nn.Module:
    if not is_adapter_module(module):
        return module
    is_on = not module.disable_adapters
    if hasattr(module, "original_module") and not is_on:  # a module trained whole, beside the adapters
        return module.original_module
    if hasattr(module, "unload_and_optionally_merge_module"):
        return module.unload_and_optionally_merge_module(merge=is_on, safe_merge=False, adapter_names=None)
    if is_on:
        module.merge()
    return module.get_base_layer()
