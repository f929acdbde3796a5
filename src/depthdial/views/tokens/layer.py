"""One decoder layer for some of the tokens of a pass: gather them, run the layer as it is, scatter them back.

The layer itself is the architecture's own; only what it is called with is cut to the tokens that run. It matches computing
every layer for every token and keeping what was routed (`dense`), which is what training does, where a gradient must also
reach the decision to skip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from depthdial.errors import InputError
from depthdial.hf.architectures import PER_SEQUENCE_ARGUMENTS, PER_TOKEN_ARGUMENTS, SHARED_ARGUMENTS, layer_states
from depthdial.views.tokens.cache import Gathered, KeysWritten, KeyValues, TokenCacheLayer
from depthdial.views.tokens.policy import Decide

Execution = Literal["gather", "dense"]
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)

_MASK = "attention_mask"


@dataclass
class TokenPass:
    """One forward pass of a token view, from its first layer to its last.

    Attributes:
        decide: what the policy says in this pass; None where all tokens run everything.
        layers: the cache's layers.
        is_prompt: (n_sequences, n_tokens), tokens that run everything; None where there are none.
        is_real: (n_sequences, n_tokens), false for padding; None where there is none.
        ran: which tokens each layer ran, where somebody asks: (n_sequences, n_tokens) or None for all, a layer at a time.
    """

    decide: Decide | None
    layers: list[TokenCacheLayer]
    key_values: KeyValues
    execution: Execution
    is_prompt: torch.Tensor | None
    is_real: torch.Tensor | None
    ran: list[torch.Tensor | None] = field(default_factory=list)

    def decision(self, index: int, hidden: torch.Tensor) -> torch.Tensor | None:
        """(n_sequences, n_tokens) of 0 and 1, in bool or with a gradient; None where every token runs."""
        chosen = None if self.decide is None else self.decide(index, hidden)
        if chosen is None:
            return None
        if not isinstance(chosen, torch.Tensor):
            raise InputError(
                f"The policy gave {chosen!r} for layer {index}: give a tensor with one value for each token, or None where "
                "all run."
            )
        if chosen.shape != hidden.shape[:2]:
            raise InputError(
                f"The policy gave a decision of shape {tuple(chosen.shape)} for layer {index}, where the tokens have "
                f"{tuple(hidden.shape[:2])}: give one value for each token."
            )
        if self.is_prompt is None:
            return chosen
        if chosen.dtype == torch.bool:
            return chosen | self.is_prompt
        return torch.where(self.is_prompt, torch.ones_like(chosen), chosen)


@dataclass
class StockLayer:
    """A layer as its architecture has it.

    Attributes:
        forward: its own.
        hides: its boolean masks are true where a slot is hidden, and not where one is seen.
        n_beside: what it returns beside the hidden states; None (no tuple) or a count, -1 until it has run once.
    """

    forward: Callable[..., Any]
    hides: bool = False
    n_beside: int | None = -1

    def __call__(self, hidden: torch.Tensor, **arguments: Any) -> Any:
        output = self.forward(hidden, **self.turned(arguments))
        self.n_beside = len(output) - 1 if isinstance(output, tuple) else None
        return output

    def turned(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`arguments` with the mask in the other convention, where this architecture's is not the usual one."""
        mask = arguments.get(_MASK)
        return {**arguments, _MASK: ~mask} if self.hides and mask is not None and mask.dtype == torch.bool else arguments


def run_layer(stock: StockLayer, index: int, now: TokenPass, hidden: torch.Tensor, arguments: dict[str, Any]) -> Any:
    """The layer's output, (n_sequences, n_tokens, width) or a tuple that starts with it, for one pass.

    `arguments` are all that it was called with beside the hidden states, by name.
    """
    decided = now.decision(index, hidden)
    runs = None if decided is None else decided if decided.dtype == torch.bool else decided.detach() > 0.5
    if runs is not None and bool(runs.all()):
        runs = None
    now.ran.append(runs)
    slots, source = now.layers[index], now.layers[index - 1] if index else None
    slots.begin(hidden.shape[0], hidden.shape[1], runs, now.key_values, source)
    call = _Call(stock, hidden, stock.turned(arguments), slots)
    if now.execution == "dense" and decided is not None:
        output = _dense(call, decided.to(hidden.dtype), runs)
    elif runs is None:
        output = call.whole()
    else:
        output = _routed(call, runs, now)
    slots.finish()
    return output


@dataclass(frozen=True)
class _Call:
    stock: StockLayer
    hidden: torch.Tensor
    arguments: dict[str, Any]
    slots: TokenCacheLayer

    def whole(self, kept: torch.Tensor | None = None) -> Any:
        """The layer on every token; `kept` are those whose own keys are written.

        A query whose own slot holds nothing sees itself all the same: nobody asks for its output, but without any slot its
        softmax would be NaN, and so would be gradients. So does a filler in `_mask`.
        """
        self.slots.expect(Gathered(kept=kept))
        arguments, valid = self.arguments, self.slots.valid
        if valid is not None:
            mask = self._whole_mask()
            mask = mask.expand(valid.shape[0], *mask.shape[1:])
            slots = torch.arange(mask.shape[3], device=mask.device)
            visible = valid[:, None, None, :] | (slots == slots[valid.shape[1] - self.hidden.shape[1] :, None])
            is_bool = mask.dtype == torch.bool
            mask = mask & visible if is_bool else mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
            arguments = {**arguments, _MASK: mask}
        return self.stock(self.hidden, **arguments)

    def some(self, plan: Gathered) -> Any:
        """The layer on the planned tokens, (n_rows, n_taken, width)."""
        self.slots.expect(plan)
        batch = self.hidden.shape[0]
        taken = {name: self._taken(name, value, plan, batch) for name, value in self.arguments.items()}
        taken[_MASK] = None if plan.only_keys else self._mask(plan)  # keys are made before anything is attended to
        return self.stock(_take(self.hidden, plan), **taken)

    def untaken(self) -> Any:
        """What the layer returns if no token runs it: its input, in the form that it would have."""
        if self.stock.n_beside == -1:  # one token, whose output and keys are dropped, to learn that form
            nobody = torch.zeros(1, 1, dtype=torch.long, device=self.hidden.device)
            self.some(Gathered(nobody[0], nobody, torch.zeros_like(nobody, dtype=torch.bool)))
        beside = self.stock.n_beside
        return self.hidden if beside is None else (self.hidden, *([None] * beside))

    def _taken(self, name: str, value: Any, plan: Gathered, batch: int) -> Any:
        if name in PER_TOKEN_ARGUMENTS and value is not None:
            return tuple(_take(t, plan) for t in value) if isinstance(value, tuple) else _take(value, plan)
        if name in PER_SEQUENCE_ARGUMENTS and isinstance(value, torch.Tensor):
            assert plan.rows is not None  # one for each (sequence, head)
            return value.unflatten(0, (batch, -1)).index_select(0, plan.rows).flatten(0, 1)
        return value

    def _whole_mask(self) -> torch.Tensor:
        """The mask of the call, or the causal one, (1, 1, n_tokens, n_slots), true where a token sees a slot."""
        if self.arguments.get(_MASK) is not None:
            return self.arguments[_MASK]
        n_slots = self.slots.n_slots
        slots = torch.arange(n_slots, device=self.hidden.device)
        return (slots <= slots[n_slots - self.hidden.shape[1] :, None])[None, None]

    def _mask(self, plan: Gathered) -> torch.Tensor | None:
        assert plan.rows is not None and plan.columns is not None
        valid, n_slots = self.slots.valid, self.slots.n_slots
        batch, n_tokens = self.hidden.shape[:2]
        if self.arguments.get(_MASK) is None and valid is None and n_tokens == 1:
            return None
        mask = self._whole_mask()
        mask = mask.expand(batch, *mask.shape[1:]).index_select(0, plan.rows)
        if n_tokens > 1:
            places = plan.columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
            mask = mask.gather(2, places)
        is_bool = mask.dtype == torch.bool
        if valid is not None:
            empty = ~valid.index_select(0, plan.rows)[:, None, None, :]
            mask = mask.masked_fill(empty, False if is_bool else torch.finfo(mask.dtype).min)
        if plan.is_real is not None:
            slots = torch.arange(mask.shape[3], device=mask.device)
            own = slots == (plan.columns + n_slots - n_tokens)[..., None]
            mask = mask.masked_fill((own & ~plan.is_real[..., None])[:, None], True if is_bool else 0.0)
        return mask


def _dense(call: _Call, weights: torch.Tensor, runs: torch.Tensor | None) -> Any:
    """Every token through the layer; `weights`, 0 or 1, mix its output with its input."""
    output = call.whole(kept=runs if call.slots.copies else None)
    mixed = weights[..., None] * layer_states(output) + (1 - weights[..., None]) * call.hidden
    return _like(output, mixed)


def _routed(call: _Call, runs: torch.Tensor, now: TokenPass) -> Any:
    if now.is_real is not None:
        runs = runs & now.is_real
    if now.key_values == "project":
        skipped = ~runs if now.is_real is None else now.is_real & ~runs
        plan = gathered(skipped, only_keys=True)
        if plan is not None:
            with contextlib.suppress(KeysWritten):
                call.some(plan)
                raise RuntimeError(
                    "The layer did not hand its keys and values to the cache, so it cannot be routed by token."
                )
    plan = gathered(runs)
    if plan is None:
        return call.untaken()
    output = call.some(plan)
    return _like(output, _put_back(call.hidden, layer_states(output), plan))


def gathered(chosen: torch.Tensor, *, only_keys: bool = False) -> Gathered | None:
    """The plan for the chosen tokens of a pass, (n_sequences, n_tokens); None if there is none.

    Rows with fewer chosen tokens than the fullest are filled up with others, whose outputs are dropped.
    """
    if chosen.shape[1] == 1:
        rows, columns = chosen.nonzero(as_tuple=True)
        return Gathered(rows, columns[:, None], only_keys=only_keys) if rows.numel() else None
    counts = chosen.sum(1)
    rows = counts.nonzero()[:, 0]
    if rows.numel() == 0:
        return None
    counts = counts.index_select(0, rows)
    most = int(counts.max())
    of_rows = chosen.index_select(0, rows)
    # Chosen places first, in order: queries must stay in order for nothing, but a reader of masks is glad of it.
    columns = torch.argsort((~of_rows).to(torch.uint8), dim=1, stable=True)[:, :most]
    is_real = of_rows.gather(1, columns)
    return Gathered(rows, columns, None if bool((counts == most).all()) else is_real, only_keys=only_keys)


def _take(values: torch.Tensor, plan: Gathered) -> torch.Tensor:
    """(n_rows, n_taken, ..) of (n_sequences or 1, n_tokens, ..)."""
    assert plan.rows is not None and plan.columns is not None
    if values.shape[1] == 1:
        return values if values.shape[0] == 1 else values.index_select(0, plan.rows)
    if values.shape[0] == 1:
        return values[0][plan.columns]
    return values[plan.rows[:, None], plan.columns]


def _put_back(hidden: torch.Tensor, output: torch.Tensor, plan: Gathered) -> torch.Tensor:
    assert plan.rows is not None and plan.columns is not None
    if hidden.shape[1] == 1:
        return hidden.index_copy(0, plan.rows, output)
    rows, columns, flat = plan.flat(output)
    return hidden.index_put((rows, columns), flat)


def _like(output: Any, hidden: torch.Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """InputError if a layer is called with tensors of which it is not known whose they are, token by token."""
    known = {*PER_TOKEN_ARGUMENTS, *PER_SEQUENCE_ARGUMENTS, *SHARED_ARGUMENTS, _MASK}
    for argument, value in arguments.items():
        if isinstance(value, torch.Tensor) and argument not in known:
            raise InputError(
                f"{name} calls its layers with {argument!r}, which token routing does not know how to cut to some tokens: "
                "use a route for whole sequences (dd.view), or another architecture."
            )
