"""`DepthdialLM`: a model of lm-evaluation-harness that runs at a depth, registered as `depthdial` by importing this module.

The harness has no plugins: `python -m depthdial.evals --model depthdial ..` is its command line behind this import, and in
Python `import depthdial.evals.lm_eval` goes before `lm_eval.simple_evaluate(model="depthdial", ..)`. The stock command knows
the model where `--tasks` names a file that imports this module, for the harness reads such files first.

Contexts are encoded, batched and cut as the harness's own `hf` model does it, and a fixed route is scored by that model's
own code on a view, so that a view has the scores of its saved folder. Read in lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

import collections
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from depthdial.checks import choice, whole
from depthdial.control.choosing import ChoosingDepth
from depthdial.engine.depth import Asked, Depth, LosslessDepth, TokenwiseDepth
from depthdial.engine.engine import Engine
from depthdial.engine.options import SAMPLING
from depthdial.engine.session import Session
from depthdial.errors import InputError
from depthdial.evals.harness import quiet_harness
from depthdial.evals.local_tasks import dataset as dataset  # named in the task files that ship: see above
from depthdial.evals.scoring import Continuation, Scorer, standing
from depthdial.hf.load import load
from depthdial.hf.weights import weights_hash
from depthdial.routes import Route
from depthdial.views.passes import PROMPT_DEPTHS
from depthdial.views.view import quiet_view

_AUTO_BATCH_SIZE = 16
_ARGUMENTS = (
    *("pretrained", "depth", "routes", "adapter", "prompt_depth", "tokenizer", "batch_size", "max_length", "seed"),
    *("dtype", "device", "trust_remote_code", "allow_bin"),
)
_HFLM: Any = HFLM  # whose own decorator hides its type


@dataclass
class Tally:
    """What ran since the last look.

    Attributes:
        layers: for each request, layers that ran for a token in the mean.
        prompts: what contexts ran: `route` or `full`.
        continuations, single: how many were scored, and how many of them are one token long.
    """

    layers: list[float] = field(default_factory=list)
    prompts: set[str] = field(default_factory=set)
    continuations: int = 0
    single: int = 0

    def scored(self, lengths: Sequence[int], layers: Sequence[float], prompt_depth: str) -> None:
        self.layers += layers
        self.prompts.add(prompt_depth)
        self.continuations += len(lengths)
        self.single += sum(n == 1 for n in lengths)

    def generated(self, layers: Sequence[float], prompt_depth: str) -> None:
        self.layers += layers
        self.prompts.add(prompt_depth)


class DepthdialLM(_HFLM):
    """A model of the harness that runs at a depth.

    Args:
        pretrained: a Hub id, folder, `.gguf` file or `smollm2-135m`, which `dd.load` takes; or a model, with `tokenizer`.
        depth: as in `dd.generate`: a route, a share or a count, a family's `FILE:24`, `lossless`, a token policy, a
            controller, or the folder of a controller or of gates.
        routes: what a depth in numbers chooses from.
        adapter: folder of a PEFT adapter, or `elastic`.
        prompt_depth: `route`: contexts run the depth too, as in an exported folder. `full`: they run every layer, as in
            `dd.generate`; continuations of a single token are then scored by the full model. A rolling likelihood is that
            of the depth either way. Depths that decide behind a prompt generate behind the one that they are made for.
        batch_size: rows that run together; `auto` for 16, or `max_batch_size`.
        max_length: longest sequence in tokens; default: the model's context.
        seed: of sampled answers.
        is_chat: whether the harness writes prompts with the tokenizer's chat template, which controllers ask.
        progress: draw bars.

    Raises:
        InputError: for an argument that is unknown, or what `dd.load` and the depth refuse.

    Example:
        >>> from lm_eval import simple_evaluate
        >>> lm = DepthdialLM(model, depth="uls:50%", tokenizer=tokenizer)
        >>> results = simple_evaluate(lm, tasks=["my_task"])
    """

    def __init__(
        self,
        pretrained: Any,
        depth: Any = "full",
        *,
        routes: Any = None,
        adapter: str | None = None,
        prompt_depth: str = "route",
        tokenizer: Any = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        dtype: Any = "auto",
        device: Any = None,
        trust_remote_code: bool = False,
        allow_bin: bool = False,
        is_chat: bool = False,
        progress: bool = True,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise InputError(
                f"The model depthdial takes no argument {next(iter(unknown))!r}: use {', '.join(_ARGUMENTS[:-1])} or "
                f"{_ARGUMENTS[-1]}."
            )
        choice("prompt depth", prompt_depth, PROMPT_DEPTHS)
        if isinstance(pretrained, str):
            # The harness's command line asks for a GPU where nobody says otherwise.
            device = None if str(device).startswith("cuda") and not torch.cuda.is_available() else device
            model, own = load(
                pretrained,
                adapter=adapter,
                dtype=dtype,
                device=device,
                trust_remote_code=bool(trust_remote_code),
                allow_bin=bool(allow_bin),
            )
            tokenizer = own if tokenizer is None else tokenizer
        else:
            model = pretrained
        if tokenizer is None:
            raise InputError("A model that is given as it is needs its tokenizer: give tokenizer= too.")
        tokenizer = copy.deepcopy(tokenizer)  # the harness changes the padding of its own
        self.given, self.prompt_depth, self.seed, self.progress = model, prompt_depth, whole("seed", seed, 0), progress
        self.depth = Depth.parse(depth, model, routes)
        self.session = Session.of(model, tokenizer, pack=False)
        self.asked = Asked(_asked_depth(self.depth, prompt_depth), _template(self.depth, is_chat))
        self.depth.prepare(self.session, self.asked)
        self.fixed = standing(self.session, self.depth)
        self.tally = Tally()
        rows = _rows(batch_size, max_batch_size)
        with quiet_harness():  # which says of a model that is given as it is how it must not be launched
            super().__init__(
                self._scored_view(),  # type: ignore[arg-type]
                backend="causal",
                tokenizer=tokenizer,
                batch_size=rows,
                max_length=None if max_length is None else whole("max_length", max_length, 2),
            )

    def _scored_view(self) -> Any:
        """What the harness's own code scores: a view of the one route; or of all layers, for its configuration alone."""
        if self.fixed is None:
            return quiet_view(self.session.model, self.session.full)
        running = self.fixed.running
        return quiet_view(self.fixed.session.model, running if isinstance(running, Route) else self.session.full)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy) of each (text, context ids, continuation ids)."""
        is_rolling = bool(requests) and requests[0][0] is None
        empty = next((text for text, _, tokens in requests if text is not None and not tokens), None)
        if empty is not None:
            raise InputError(
                f"The continuation {empty[1]!r} has no tokens of its own behind {empty[0][-40:]!r}: leave it out."
            )
        prompt_depth = "route" if is_rolling else self.prompt_depth
        if self.fixed is not None and isinstance(self.fixed.running, Route) and prompt_depth == "route":
            lengths = [len(tokens) for _, _, tokens in requests]
            self.tally.scored(lengths, [self.fixed.running.cost_layers] * len(lengths), prompt_depth)
            is_quiet = disable_tqdm or is_rolling or not self.progress  # of rolling windows each batch would have a bar
            return super()._loglikelihood_tokens(requests, is_quiet, override_bs)
        scorer = Scorer(self.session, self.depth, self.asked)
        found: dict[int, tuple[float, bool]] = {}
        rows = [self._cut(context, tokens) for _, context, tokens in requests]
        # The longest first, and those of one context together.
        order = sorted(range(len(rows)), key=lambda place: (-len(rows[place].context), rows[place].context))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            scores = scorer.score([rows[place] for place in places], prompt_depth)
            self.tally.scored([len(rows[place].tokens) for place in places], [one.layers for one in scores], prompt_depth)
            for place, one in zip(places, scores, strict=True):
                found[place] = one.log_likelihood, one.is_greedy
                if not is_rolling:
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], found[place])
        return [found[place] for place in range(len(rows))]

    def _cut(self, context: Sequence[int], tokens: Sequence[int]) -> Continuation:
        """Context and continuation in what fits the model, cut from the left."""
        if len(tokens) > self.max_length:
            raise InputError(
                f"A continuation of {len(tokens)} tokens does not fit the {self.max_length} of the model: leave it out of "
                "the task, or raise max_length."
            )
        kept = [*context, *tokens][-(self.max_length + 1) :]
        return Continuation(tuple(kept[: -len(tokens)]), tuple(tokens))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm or not self.progress)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm or not self.progress)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The answers to (context, settings), each up to where the first of its stop strings begins."""
        seen: collections.Counter[str] = collections.Counter()
        handles = []
        with Engine(self.given, self.tokenizer, max_rows=self.batch_size) as engine:
            for request in requests:
                context, settings = request.args
                key = json.dumps([context, settings], sort_keys=True, default=str)
                handles.append(self._submit(engine, context, settings, seen[key]))
                seen[key] += 1
            answers = [handle.result() for handle in handles]
        self.tally.generated([float(one.layers_run or 0) for one in answers], self.asked.prompt_depth)
        texts = []
        for request, answer in zip(requests, answers, strict=True):
            texts.append(postprocess_generated_text(answer.text, _stops(request.args[1]), None))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _submit(self, engine: Engine, context: str, settings: Mapping[str, Any], repeat: int) -> Any:
        """One answer on its way; a request that is repeated draws anew."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        del options["until"]
        new_tokens = options.pop("max_gen_toks")
        if not options.get("do_sample"):
            options = {name: value for name, value in options.items() if name not in SAMPLING}
        return engine.submit(
            prompt_ids=self._fitted(context, new_tokens),
            depth=self.depth,
            prompt_depth=self.asked.prompt_depth,
            template=self.asked.template,  # for a controller to ask: the harness has written the prompt
            max_new_tokens=new_tokens,
            stop_strings=_stops(settings) or None,
            stop_in_answer=True,
            seed=self.seed + repeat if options.get("do_sample") else None,
            **options,
        )

    def _fitted(self, context: str, new_tokens: int) -> list[int]:
        """The tokens of a context that leave room for the answer, cut from the left."""
        most = self.max_length - new_tokens
        if most < 1:
            raise InputError(
                f"An answer of {new_tokens} tokens leaves no room for a prompt in the {self.max_length} of the model: give "
                "less max_gen_toks."
            )
        return self.tok_encode(context)[-most:]

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's results: what ran."""
        return {
            "depth": self.depth.name,
            "route": str(self.depth),
            "n_layers": self.session.n_layers,
            "prompt_depth": self.prompt_depth,
            "weights_hash": weights_hash(self.given),
            "model_dtype": str(self.model.dtype),
        }


def _stops(settings: Mapping[str, Any]) -> list[str]:
    return [one for one in handle_stop_sequences(copy.copy(settings.get("until")), None) if one]


def _asked_depth(depth: Depth, prompt_depth: str) -> str:
    """How prompts run before an answer: as asked, or as a depth that decides behind them has it."""
    if isinstance(depth, ChoosingDepth):
        return depth.controller.card.prompt_depth
    return "full" if isinstance(depth, TokenwiseDepth | LosslessDepth) else prompt_depth


def _template(depth: Depth, is_chat: bool) -> str:
    """The template of the harness's prompts, in the words of the depth."""
    if not isinstance(depth, ChoosingDepth):
        return "chat" if is_chat else "plain"
    fitted = depth.controller.card.template
    if (fitted == "chat") != is_chat:
        remedy = "evaluate with --chat (chat=True)" if fitted == "chat" else "leave out --chat (chat=True)"
        raise InputError(f"The controller was fitted to prompts of template {fitted!r}: {remedy}.")
    return fitted  # a bare prompt is the same text in `paper` and `plain`


def _rows(batch_size: int | str, most: int | None) -> int:
    if str(batch_size).startswith("auto"):
        return _AUTO_BATCH_SIZE if most is None else whole("max_batch_size", most, 1)
    text = str(batch_size)
    return whole("batch_size", int(text) if text.isdecimal() else batch_size, 1)


register_model("depthdial")(DepthdialLM)  # no decorator, whose type would hide the class
