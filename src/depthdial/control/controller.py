"""Sequence controllers: from the prompt alone, how good would each route's answer be, and which route is worth its price?

The paper stops at an oracle that knows the answers (arXiv 2410.20022, section 4). A controller predicts the quality of every
route and the length of its answer from the prompt's hidden states, which a prompt at full depth leaves at no further cost.
It picks the route with the greatest predicted quality minus price times predicted cost: layers run times decoding steps. The
price is set for a budget on rows of the fit, never on those that the controller is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from depthdial.control.card import ControllerCard
from depthdial.control.certify import certification_plan, certify_rows, identity_of
from depthdial.control.choosing import ChoosingDepth
from depthdial.control.fit import FitSettings, fit_controller, measure_for
from depthdial.control.fitted import CALIBRATION, CALIBRATION_STEPS, PREDICTOR, STEPS, FittedController
from depthdial.control.memory import CertifiedRows
from depthdial.control.online import OnlineController
from depthdial.control.prediction import LAYER_STEPS, Prediction, require_prediction
from depthdial.control.predictors.base import Predictor
from depthdial.control.predictors.fitting import restore_predictor
from depthdial.data.leakage import prompt_hashes, require_no_test_split
from depthdial.data.tasks import Task, as_task
from depthdial.errors import InputError
from depthdial.files import Document, write_atomically
from depthdial.guarantee.plan import Certificate
from depthdial.measure.plan import ModelIdentity
from depthdial.oracles.prices import Budget, OnlineBudget, choose_routes, price_for_budget
from depthdial.views.passes import PromptDepth

CONTROLLER_FILE, ARRAYS_FILE = "controller.json", "controller.safetensors"
_FILE = Document("depthdial-controller", 2, "controller", "fit one with `depthdial controller fit`")


@dataclass(frozen=True, eq=False)
class SequenceController(FittedController, ChoosingDepth):
    """Predicts the quality of every route of a family and picks one for each sequence; made by `fit`.

    Attributes (and those of `FittedController`):
        certificate: what was certified of it at this price, or nothing.
        certified_on: the rows that it was certified on, which are refused for any other certificate; copies share it.

    Example:
        >>> routes = ["uls:50%", "full"]
        >>> controller = dd.SequenceController.fit(model, tokenizer, task=many, routes=routes, response_tokens=4)
        >>> answers = dd.generate(model, tokenizer, ["the cat"], depth=controller.at("80%"), max_new_tokens=4)
    """

    certificate: Certificate | None = None
    certified_on: CertifiedRows = field(default_factory=CertifiedRows, repr=False)

    @property
    def name(self) -> str:
        return "controller"

    def __str__(self) -> str:
        return f"controller:{identity_of(self)[:12]} at price {self.price!r}"

    @property
    def controller(self) -> Self:  # type: ignore[override]
        return self

    def pick_at(self, predicted: Prediction) -> tuple[np.ndarray, tuple[float, ...]]:
        quality, costs = require_prediction(predicted).quality, self.expected_costs(predicted)
        return choose_routes(quality, costs, self.price), (self.price,) * len(predicted)

    def at(self, budget: Budget) -> SequenceController:
        """The same controller at the price that keeps a budget on the rows of the fit; it carries no certificate.

        Args:
            budget: a share of the full model's cost ("80%", or 0.8 of layer-steps), a number of layers (24 of layer-steps or
                layers), or a mean cost of a sequence in the controller's unit.

        Raises:
            InputError: if it is none, or below the cheapest route.
        """
        cost = self.card.budget(budget)
        costs = self.expected_costs(self.calibration)
        return replace(self, price=price_for_budget(self.calibration.quality, costs, cost), certificate=None)

    def online(self, budget: Budget) -> OnlineController:
        """A controller for a stream: its price follows what is spent, so that the budget holds whatever arrives.

        A moving price is no setting that was certified, so it carries no certificate.
        """
        costs = self.expected_costs(self.calibration)
        state = OnlineBudget.start(self.calibration.quality, costs, self.card.budget(budget))
        return OnlineController(replace(self, certificate=None), state)

    def certify(
        self,
        model: Any,
        tokenizer: Any,
        *,
        task: Task,
        epsilon: float,
        delta: float | None = 0.05,
        method: str = "betting",
        batch_size: int = 16,
        seed: int = 0,
        out: Path | str | None = None,
        identity: ModelIdentity | None = None,
        progress: bool = False,
    ) -> Certificate:
        """Measure rows that the controller has not seen and certify a price on them; see `guarantee.plan`.

        The certificate says so where nothing can be certified. `certified` gives the controller at its price.

        Args:
            task: sequences drawn as those to come will be; none of the fit.
            epsilon: loss of quality against the full model that is allowed on average (0.02: 2 points of agreement).
            delta: the probability of a wrong certificate; None with `conformal_risk_control`, which promises an expectation.
            out: a folder for the measured rows; a stopped run goes on there.

        Raises:
            InputError: for a test split, a task that shares prompts with the fit or with another certificate of this
                controller, another model, or numbers out of range.
        """
        task = as_task(task, held_out=True)
        require_no_test_split(task, "certify")
        plan = certification_plan(self, epsilon, delta=delta, method=method, seed=seed)  # before a row is read
        self.certified_on.require_untried([plan], prompt_hashes(task))
        options: dict[str, Any] = {"batch_size": batch_size, "out": out, "identity": identity, "progress": progress}
        rows = measure_for(self, model, tokenizer, task, **options)
        self.certified_on.note([plan], rows.prompts)
        about = {"task": task.name, "split": task.split, "source": task.source_fingerprint, "prompts": list(rows.prompts)}
        return certify_rows(self, plan, rows, about)

    def certified(self, certificate: Certificate) -> SequenceController:
        """The same controller at a certified price.

        Raises:
            InputError: if the certificate certifies nothing, or belongs to another controller.
        """
        if certificate.certified is None:
            raise InputError(certificate.reason or "Nothing is certified.")
        about = certificate.plan.about
        if about.get("controller") != identity_of(self):
            raise InputError(
                f"The certificate {certificate.plan_digest} belongs to another controller, or its weights were changed "
                "since: certify this one."
            )
        return replace(self, price=float(about["prices"][certificate.certified - 1]), certificate=certificate)

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write `controller.json` and `controller.safetensors` into a folder, each by atomic rename; the JSON's path."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays().items()}
        write_atomically(folder / ARRAYS_FILE, lambda part: save_file(arrays, part))
        fields = {
            **self.card.to_dict(),
            "predictor": {"kind": self.predictor.kind, "settings": self.predictor.settings()},
            "steps_predictor": {"kind": self.steps_predictor.kind, "settings": self.steps_predictor.settings()},
            "price": self.price,
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
        }
        self.certified_on.save(folder)
        return _FILE.write(folder / CONTROLLER_FILE, fields)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> SequenceController:
        """Read what `save_pretrained` wrote. Nothing is unpickled.

        Raises:
            InputError: if the folder holds no controller, or one that is damaged or of another version.
        """
        folder = Path(folder)
        controller, certificate = _FILE.read(folder / CONTROLLER_FILE, partial(cls._of, folder / ARRAYS_FILE))
        controller.certified_on.read(folder, certificate)
        if certificate is None:
            return controller
        certified = controller.certified(certificate)
        if certified.price != controller.price:
            raise InputError(f"The controller in {folder} is at another price than its certificate: certify it again.")
        return certified

    @classmethod
    def _of(cls, path: Path, document: dict[str, Any]) -> tuple[SequenceController, Certificate | None]:
        """The controller of a document and the arrays in a file, at its stored price, and its certificate."""
        card, price, kept = ControllerCard.from_dict(document), float(document["price"]), document["certificate"]
        arrays = _arrays(path)
        calibration = Prediction(arrays.pop(CALIBRATION), arrays.pop(CALIBRATION_STEPS))
        predictor = _restored(document["predictor"], arrays, PREDICTOR)
        steps_predictor = _restored(document["steps_predictor"], arrays, STEPS)
        n_routes, n_features = len(card.routes), card.features.n_features
        fits = not arrays and price >= 0 and calibration.quality.shape[1] == n_routes
        fits &= bool(np.isfinite([calibration.quality, calibration.steps]).all())
        fits &= (predictor.n_routes, predictor.n_features) == (n_routes, n_features)
        fits &= steps_predictor.n_routes in (1, n_routes) and steps_predictor.n_features == n_features
        if not fits:
            raise ValueError("its parts do not fit each other")
        certificate = None if kept is None else Certificate.from_dict(kept)
        return cls(card, predictor, steps_predictor, calibration, price), certificate

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        task: Task,
        routes: Any = None,
        budget: Budget = "80%",
        metric: str = "agreement",
        cost: str = LAYER_STEPS,
        predictor: str = "ridge",
        prompt_depth: PromptDepth = "full",
        response_tokens: int = 64,
        batch_size: int = 16,
        n_folds: int = 5,
        seed: int = 0,
        out: Path | str | None = None,
        identity: ModelIdentity | None = None,
        progress: bool = False,
        allow_searched_rows: bool = False,
        latency: Path | str | None = None,
    ) -> SequenceController:
        """Measure every route on the rows of a task and learn to predict it from the prompts.

        Args:
            model: the full model, with or without an adapter. With one, its routes run with it and the full route without.
            task: train or validation rows; hundreds, better thousands.
            routes: a RouteFamily, its file, or routes and their texts, the full one among them; default: those that the
                model's adapter was trained for, or the model's best known ones, at most six of them.
            budget: a share of the full model's cost such as "80%", a number of layers, or a mean cost of a sequence in the
                unit of `cost`; another one can be set later with `at`.
            metric: `agreement` with the full model, teacher-forced on its own greedy answer, or `rouge_l`, for which every
                route answers.
            cost: what is spent: `layer_steps` (layers run times decoding steps, as a share of the full model's), `flops` or
                `ms` (of a decoding step, measured here, times the steps), or `layers`, which counts every sequence alike,
                however short its answer (the paper's Figure 2).
            predictor: `ridge`, `trees` (needs LightGBM), `mlp`, or `auto` for the one that cross-validates best.
            prompt_depth: `full`, or `route`: then only the layers that all routes share run before the choice.
            response_tokens: the longest answer.
            n_folds: of cross-validation, on whose predictions the prices are set.
            out: a folder for the measured rows; a stopped run goes on there. The controller is saved there too.
            allow_searched_rows: also learn from rows that routes were searched on, or the model or its adapter trained on.
            latency: with `cost="ms"`, a bench.json or its folder (see `dd.bench`): what a step of each route takes by it.

        Raises:
            InputError: for a test split, rows that were searched or trained on, too few rows, a family without the full
                route, features that are all constant, or a bad argument; before anything runs, where that can be told.
        """
        sizes = (response_tokens, batch_size, n_folds, seed)
        settings = FitSettings(
            budget,
            metric,
            cost,
            predictor,
            prompt_depth,
            *sizes,
            allow_searched_rows,
            None if latency is None else str(latency),
        )
        fitted = fit_controller(
            model, tokenizer, task=task, routes=routes, settings=settings, out=out, identity=identity, progress=progress
        )
        controller = cls(**vars(fitted))
        if out is not None:
            controller.save_pretrained(out)
        return controller


def _restored(document: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str) -> Predictor:
    """The predictor whose arrays have a prefix, which are taken out of `arrays`."""
    own = {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
    return restore_predictor(document["kind"], document["settings"], own)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"There is no {path} beside it") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file") from error
