"""`evaluate`: tasks of lm-evaluation-harness at several depths of a model, in a folder that a stopped run goes on in."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from depthdial.checks import choice, whole
from depthdial.engine.depth import Depth, read_depths
from depthdial.engine.lossless import Lossless
from depthdial.errors import DataWarning, InputError
from depthdial.evals.harness import harness_version, require_harness
from depthdial.files import check_out_folder
from depthdial.hf.architectures import count_layers
from depthdial.measure.plan import ModelIdentity
from depthdial.routes import split_routes
from depthdial.rows.evals import EvalFolder, EvalResults, EvalUnit, in_order
from depthdial.rows.store import unit_name
from depthdial.views.passes import PROMPT_DEPTHS


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    tasks: str | Sequence[str] = "builtin",
    depth: Any = "full",
    prompt_depth: str = "route",
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    include_path: str | PathLike[str] | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    identity: ModelIdentity | None = None,
    say: Callable[[str], object] | None = None,
) -> EvalResults:
    """Evaluate a model at some depths, one after the other, with lm-evaluation-harness (the extra `eval`).

    By default contexts run the depth too, so that a route has the scores of the folder that `dd.view(..).save_pretrained`
    writes. The model is not changed.

    Args:
        tasks: names of the harness's tasks, tags and groups, by commas or as a list, `*` for any letters; `builtin` is three
            small ones that ship and need no network.
        depth: one, or a list: routes, shares and counts, `lossless`, token policies, controllers, folders of controllers or
            gates, as in `dd.generate`; or their texts by commas, or a route family file.
        prompt_depth: route (contexts run the depth), or full (they run every layer, and so choices of a single token are
            scored by the full model). Rolling likelihoods are those of the depth either way.
        limit: use the first so many documents of each task.
        num_fewshot: examples in every context; None for what each task says.
        chat: write prompts with the tokenizer's chat template, and examples as turns of a chat.
        batch_size: sequences that run together.
        max_length: longest sequence, in tokens; None for the model's context.
        include_path: a folder with task files of your own.
        seed: of sampled answers.
        out: a folder for the results, and for the page of `dd.write_report`. A stopped evaluation goes on there, and other
            tasks and depths join it.
        identity: which model this is, where the caller knows.
        say: called with a line on each task and depth that is done.

    Returns:
        The scores of these tasks at these depths, with standard errors over documents.

    Raises:
        InputError: if lm-evaluation-harness is not installed, for an unknown task or a depth that does not fit, data that
            cannot be loaded, or a folder of another evaluation.

    Warns:
        DataWarning: with full contexts, once for each task whose choices are single tokens.

    Example:
        >>> results = dd.evaluate(model, tokenizer, tasks="builtin_choice", depth=["full", "uls:50%"], limit=4)
        >>> [(unit.depth, unit.layers) for unit in results.units]
        [('full', 6.0), ('uls:3', 3.0)]
    """
    require_harness()
    choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
    for name, value, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0), ("max_length", max_length, 2)):
        if value is not None:
            whole(name, value, least)
    whole("batch_size", batch_size, 1)
    folder = None if out is None else check_out_folder(Path(out))
    from depthdial.evals.catalogue import Catalogue  # behind the question whether the harness is there
    from depthdial.evals.lm_eval import DepthdialLM
    from depthdial.evals.units import run_unit

    names = [one.strip() for one in tasks.split(",") if one.strip()] if isinstance(tasks, str) else list(tasks)
    catalogue = Catalogue.of(names, include_path, num_fewshot)
    depths = _read(depth, model)
    if chat and not getattr(tokenizer, "chat_template", None):
        raise InputError("This tokenizer has no chat template: leave chat out.")
    about = vars(identity or ModelIdentity.of(model))
    settings = {
        "model": about["name"],
        **{name: value for name, value in about.items() if name != "name"},
        **{"prompt_depth": prompt_depth, "limit": limit, "num_fewshot": num_fewshot, "chat": chat, "seed": seed},
        **{"max_length": max_length, "lm_eval": harness_version()},
    }
    store = EvalFolder(settings, folder)
    units: list[EvalUnit] = []
    for one in depths:
        lm = None
        for task in catalogue.names:
            key = f"{task}-{unit_name([task], f'{one.name} {one}')}"
            unit = store.read(key)
            if unit is None:
                loaded = catalogue.load(task)
                lm = lm or DepthdialLM(
                    model,
                    one,
                    tokenizer=tokenizer,
                    prompt_depth=prompt_depth,
                    batch_size=batch_size,
                    max_length=max_length,
                    seed=seed,
                    is_chat=chat,
                    progress=say is not None and sys.stderr.isatty(),
                )
                unit = run_unit(lm, task, loaded, limit=limit, chat=chat)
                store.write(key, unit)
            units.append(unit)
            if say is not None:
                say(_line(unit))
    _warn_of_single(units)
    return EvalResults(settings, in_order(units), folder)


def _read(given: Any, model: Any) -> list[Depth]:
    """The depths of a call, each once.

    Raises:
        InputError: for what is no depth, or two of one name.
    """
    n_layers = count_layers(model)
    several = given if isinstance(given, list) else split_routes(given) if _is_list(given) else [given]
    found = [depth for one in several for depth in _one(one, model, n_layers)]
    kept = {(depth.name, str(depth)): depth for depth in found}
    names = [name for name, _ in kept]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"Two different depths are called {twice!r}: evaluate them into folders of their own.")
    if not kept:
        raise InputError("No depth was given: name at least one, such as full or uls:50%.")
    return list(kept.values())


def _is_list(given: Any) -> bool:
    """Whether this is a text that may name several; a folder's path may hold commas."""
    try:
        return isinstance(given, str) and not Path(given).exists()
    except OSError:  # a long list of routes is no file name
        return True


def _one(given: Any, model: Any, n_layers: int) -> Iterator[Depth]:
    """What one depth of a call stands for: several where it is a family."""
    if Lossless.read(given) is not None:
        yield Depth.parse(given, model)
    else:
        yield from (Depth.parse(one, model) for one in read_depths(given, model, n_layers))


def _line(unit: EvalUnit) -> str:
    score = unit.score()
    spread = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{unit.task} at {unit.depth}: {score.name} {score.value:.3f}{spread} ({unit.n_documents} documents)"


def _warn_of_single(units: Sequence[EvalUnit]) -> None:
    shallow = [one for one in units if "full" in one.prompt_depth and not one.is_full and one.one_token_share]
    for task in dict.fromkeys(one.task for one in shallow):
        share = max(one.one_token_share or 0 for one in shallow if one.task == task)
        warnings.warn(
            f"{share:.0%} of the continuations of {task} are single tokens, which the full model scores at any depth behind "
            "a full-depth context: evaluate with prompt_depth='route'.",
            DataWarning,
            stacklevel=3,
        )
