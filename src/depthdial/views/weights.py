"""The weights that a view shares with its base, for as long as the view's are not changed: copy on write.

A view's modules have tables of their own, and in them the base's own parameters. Methods of modules that change parameters
(casting, freezing, loading, initializing, merging) and modules put in place of others (adapters, quantization) first give
the view parameters of its own: on the base's memory where only the parameter itself is changed or replaced, and on a copy
where its numbers would be written to. What is done to a parameter itself (`p.data.add_(1)`, an optimizer's step) is done to
the base's.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from depthdial.errors import InputError

SHARED_ATTRIBUTE = "depthdial_shared"

# Methods of modules that change parameters, and whether by writing to their memory.
_WRITERS = {
    "_apply": False,  # to, half, float, cuda, to_empty, ..
    "requires_grad_": False,
    "resize_token_embeddings": False,
    "resize_position_embeddings": False,
    "set_adapter": False,
    "enable_adapters": False,
    "load_state_dict": True,
    "share_memory": True,
    "reset_parameters": True,
    "init_weights": True,
    "_init_weights": True,
    "initialize_weights": True,
    "post_init": True,
    "merge": True,  # of PEFT's layers
    "unmerge": True,
}


class Shared:
    """What the modules of one view share with its base."""

    def __init__(self) -> None:
        self.top: nn.Module | None = None  # the view; a copy of one shares nothing
        self.refusal: str | None = None  # why the view cannot have other weights than its base
        self.has_tables = True  # of parameters of its modules' own: not where FSDP swaps what is in them
        self._theirs: dict[int, nn.Parameter] = {}  # the base's own
        self._aliases: dict[int, nn.Parameter] = {}  # the view's own, on the base's memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return Shared()

    def __reduce__(self) -> Any:
        return Shared, ()

    def note(self, parameters: dict[str, nn.Parameter | None]) -> None:
        """Take down that these are the base's."""
        self._theirs.update((id(parameter), parameter) for parameter in parameters.values() if parameter is not None)

    def own(self, module: nn.Module, *, copies: bool, only_flags: bool = False) -> None:
        """Give the view parameters of its own where `module` has the base's, in memory of their own if `copies`; tied ones
        stay tied. InputError if this view cannot have other weights, unless all that changes is whether they need gradients.
        """
        if self.top is None:
            return
        new: dict[int, nn.Parameter] = {}
        for parameter in _parameters(module):
            is_shared = id(parameter) in self._theirs or (copies and id(parameter) in self._aliases)
            if is_shared and id(parameter) not in new:
                new[id(parameter)] = _alike(parameter, copies)
        if not new:
            return
        if self.refusal is not None and not (only_flags and self.has_tables):
            raise InputError(self.refusal)
        for part in (*self.top.modules(), *module.modules()):
            for name, parameter in part._parameters.items():
                if parameter is not None and id(parameter) in new:
                    part._parameters[name] = new[id(parameter)]
        for old, parameter in new.items():
            self._theirs.pop(old, None)
            self._aliases.pop(old, None)
            if not copies:
                self._aliases[id(parameter)] = parameter

    def is_changed_by(self, module: nn.Module, function: Any) -> bool:
        """Whether a function of tensors, as `_apply` takes it, gives others for the base's parameters in `module`."""
        shared = (p for p in _parameters(module) if id(p) in self._theirs)
        with torch.no_grad():
            probes = [torch.empty(0, dtype=dtype, device=device) for dtype, device in {(p.dtype, p.device) for p in shared}]
            return any(function(probe) is not probe for probe in probes)


class Children(dict[str, nn.Module | None]):
    """The sub-modules of a view's module. Whoever puts another in the place of one is about to change the view's weights."""

    __slots__ = ("shared",)

    def __init__(self, modules: dict[str, nn.Module | None], shared: Shared) -> None:
        super().__init__(modules)
        self.shared = shared

    def __setitem__(self, name: str, module: nn.Module | None) -> None:
        shared = self.shared
        if shared.top is not None:
            shared.own(shared.top, copies=False)
            for method in ("merge", "unmerge") if module is not None else ():
                if callable(getattr(type(module), method, None)):
                    module.__dict__[method] = functools.partial(_write, module, shared, method)  # type: ignore[union-attr]
        super().__setitem__(name, module)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # a copy shares nothing


def watch(state: dict[str, Any], shell: nn.Module, shared: Shared) -> None:
    """Have the methods of a view's module, whose attributes are `state`, ask before they change what is shared."""
    for name in writers(type(shell)):
        state[name] = functools.partial(_write, shell, shared, name)


@functools.cache
def writers(kind: type[nn.Module]) -> tuple[str, ...]:
    """The methods of a kind of module that `watch` replaces on a view's."""
    return tuple(name for name in _WRITERS if callable(getattr(kind, name, None)))


def _write(module: nn.Module, shared: Shared, name: str, *args: Any, **kwargs: Any) -> Any:
    """A module's method `name`, once what it changes is the view's own."""
    if name == "_apply":
        if shared.top is not None and shared.is_changed_by(module, args[0]):
            shared.own(module, copies=False)
    elif name == "_init_weights" and args:  # of another module than this one
        shared.own(args[0], copies=True)
    elif name == "load_state_dict":
        shared.own(module, copies=not kwargs.get("assign", False))
    else:
        shared.own(module, copies=_WRITERS[name], only_flags=name == "requires_grad_")
    return getattr(type(module), name)(module, *args, **kwargs)


def _parameters(module: nn.Module) -> Any:
    return (p for part in module.modules() for p in part._parameters.values() if p is not None)


def _alike(parameter: nn.Parameter, copies: bool) -> nn.Parameter:
    """A parameter of the same kind, numbers and marks, and without a gradient."""
    if type(parameter) is nn.Parameter:
        data = parameter.detach().clone() if copies else parameter.detach()
        new = nn.Parameter(data, requires_grad=parameter.requires_grad)
    else:  # quantized weights know how they are copied
        new = copy.deepcopy(parameter) if copies else copy.copy(parameter)
    vars(new).update(vars(parameter))
    return new
