"""Verification of drafted tokens, as tensors alone: the answers have exactly the target's distribution.

Algorithm 1 of Leviathan et al. (arXiv 2211.17192), for rows that have drafted unlike numbers of tokens: a drafted token d is
accepted with probability min(1, p(d) / q(d)); the first that is not is replaced by a draw from max(p - q, 0), normalised;
and where all are accepted, one more token is drawn from p. Both p and q are taken after the same processors, temperature and
truncation. A greedy row's p is one-hot, and so is the q of a draft that nothing was drawn for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthdial.engine.sampling import pick_tokens


@dataclass(frozen=True)
class Verified:
    """What became of the drafts of each row.

    Attributes:
        n_accepted: (n_rows,) how many of its drafted tokens a row keeps, from the first on.
        tokens: (n_rows,) the token that follows those: one in place of the rejected draft, or behind the last one.
    """

    n_accepted: torch.Tensor
    tokens: torch.Tensor


def verify_sampled(
    target: torch.Tensor,
    draft: torch.Tensor | None,
    drafted: torch.Tensor,
    accept_draws: torch.Tensor,
    token_draws: torch.Tensor,
    n_drafted: torch.Tensor | None = None,
) -> Verified:
    """Accept or replace drafted tokens so that answers follow the target's distribution.

    Args:
        target: (n_rows, k + 1, vocabulary) probabilities p at the drafted tokens' positions and at the one behind them.
        draft: (n_rows, k, vocabulary) probabilities q that the tokens were drawn from; None for tokens that were not drawn
            (a greedy draft, a copy of the prompt), whose q is one-hot.
        drafted: (n_rows, k) token ids; behind a row's own number of them, any ids.
        accept_draws: (n_rows, k) numbers in [0, 1), one for each drafted token.
        token_draws: (n_rows, k + 1) numbers in [0, 1), for the token that comes at each position where a draft is replaced
            or the drafts are over.
        n_drafted: (n_rows,) how many tokens each row has drafted, 0 to k; default: k.

    Raises:
        ValueError: for shapes that do not fit each other.

    Example:
        >>> import torch
        >>> p = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
        >>> found = verify_sampled(p, None, torch.tensor([[1]]), torch.tensor([[0.4]]), torch.tensor([[0.9, 0.9]]))
        >>> found.n_accepted.tolist(), found.tokens.tolist()
        ([1], [2])
    """
    n_rows, k = drafted.shape
    _check(target, draft, accept_draws, token_draws, n_rows, k)
    own = target[:, :k].gather(-1, drafted[..., None])[..., 0]
    odds = torch.ones_like(own) if draft is None else draft.gather(-1, drafted[..., None])[..., 0].to(own)
    # In fp32 a number just below 1 may round to 1, where a token with p = q would be rejected.
    chance = accept_draws.to(own).clamp(max=1 - torch.finfo(own.dtype).eps)
    n_accepted = _leading((chance * odds < own) & (odds > 0), n_drafted)
    rows = torch.arange(n_rows, device=drafted.device)
    remaining = target[rows, n_accepted]
    if k:
        is_rejected = n_accepted < (k if n_drafted is None else n_drafted.to(drafted.device))
        place = n_accepted.clamp(max=k - 1)
        if draft is None:
            left = remaining.scatter(-1, drafted[rows, place][:, None], 0.0)
        else:
            left = (remaining - draft[rows, place].to(remaining)).clamp(min=0)
        # Nothing is left where p and q are equal but for rounding; p is then the distribution to draw from.
        is_replaced = is_rejected[:, None] & (left.sum(-1, keepdim=True) > 0)
        remaining = torch.where(is_replaced, left, remaining)
    return Verified(n_accepted, pick_tokens(remaining, token_draws[rows, n_accepted]))


def verify_chosen(drafted: torch.Tensor, chosen: torch.Tensor, n_drafted: torch.Tensor | None = None) -> Verified:
    """Accept drafted tokens as long as they are those that the target chooses: what greedy rows need, without probabilities.

    Args:
        drafted: (n_rows, k) token ids.
        chosen: (n_rows, k + 1) the target's tokens at the same positions and at the one behind them.
        n_drafted: (n_rows,) how many tokens each row has drafted, 0 to k; default: k.

    Raises:
        ValueError: for shapes that do not fit each other.

    Example:
        >>> import torch
        >>> verify_chosen(torch.tensor([[4, 5, 6]]), torch.tensor([[4, 5, 7, 8]])).tokens
        tensor([7])
    """
    n_rows, k = drafted.shape
    if chosen.shape != (n_rows, k + 1):
        raise ValueError(f"chosen has shape {tuple(chosen.shape)} where {n_rows} rows drafted {k} tokens.")
    n_accepted = _leading(drafted == chosen[:, :k], n_drafted)
    return Verified(n_accepted, chosen.gather(1, n_accepted[:, None])[:, 0])


def _leading(is_accepted: torch.Tensor, n_drafted: torch.Tensor | None) -> torch.Tensor:
    """(n_rows,) how many are accepted before the first that is not."""
    if n_drafted is not None:
        places = torch.arange(is_accepted.shape[1], device=is_accepted.device)
        is_accepted = is_accepted & (places < n_drafted.to(is_accepted.device)[:, None])
    return is_accepted.long().cumprod(-1).sum(-1)


def _check(
    target: torch.Tensor,
    draft: torch.Tensor | None,
    accept_draws: torch.Tensor,
    token_draws: torch.Tensor,
    n_rows: int,
    k: int,
) -> None:
    expected = {
        "target": (target, (n_rows, k + 1, target.shape[-1])),
        "accept_draws": (accept_draws, (n_rows, k)),
        "token_draws": (token_draws, (n_rows, k + 1)),
    }
    if draft is not None:
        expected["draft"] = draft, (n_rows, k, target.shape[-1])
    for name, (given, shape) in expected.items():
        if given.shape != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)} where {n_rows} rows drafted {k} tokens: {shape} fits.")
