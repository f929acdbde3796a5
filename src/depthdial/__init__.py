"""Depthdial: run only a chosen subset of a decoder-only model's layers, and know what that costs.

    import depthdial as dd

    model, tokenizer = dd.load("smollm2-135m")
    route = dd.Route.parse("uls:50%", n_layers=30)
    shallow = dd.view(model, route)

Names are imported when they are first used, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from depthdial import moved

if TYPE_CHECKING:
    from depthdial.control.controller import SequenceController
    from depthdial.data.tasks import Task, task
    from depthdial.engine.generate import Generation, generate
    from depthdial.errors import CheckpointWarning, InputError, RouteWarning, TokenizerWarning
    from depthdial.guarantee.plan import Certificate, CertificationPlan, certify
    from depthdial.hf.adapter import AdapterCard, adapter_card
    from depthdial.hf.load import load
    from depthdial.hf.untouched import untouched
    from depthdial.measure.cost import model_cost
    from depthdial.measure.similarity import similarity
    from depthdial.measure.sweep import sweep
    from depthdial.oracles.exact.knapsack import solve_budget
    from depthdial.oracles.oracle import OracleCurve, oracle
    from depthdial.oracles.predictable import PredictableCurve, predictable_oracle
    from depthdial.report.kit.page import write_report
    from depthdial.routes import RandomRoute, Route, family_routes
    from depthdial.routes.families import RouteFamily
    from depthdial.search.run import search_routes
    from depthdial.studies.gates import gates_study
    from depthdial.studies.search import SearchStudySettings, search_study
    from depthdial.studies.study import study
    from depthdial.train.depth.finetune import finetune
    from depthdial.train.depth.settings import FinetuneSettings
    from depthdial.train.gates.settings import GateSettings
    from depthdial.train.gates.study import GatesStudySettings
    from depthdial.train.gates.training import train_gates
    from depthdial.views.prompted import prompted_view
    from depthdial.views.tokens.depth import TokenDepth
    from depthdial.views.tokens.gate_folder import load_gates
    from depthdial.views.tokens.gates import GateConfig, TokenGates
    from depthdial.views.tokens.policy import Bernoulli, ConfidenceExit, StaticRoutes, TokenPolicy
    from depthdial.views.tokens.view import TokenTrace, token_view
    from depthdial.views.view import view

__version__ = "0.1.0"

moved.install()

_HOMES = {
    "AdapterCard": "hf.adapter",
    "Bernoulli": "views.tokens.policy",
    "Certificate": "guarantee.plan",
    "CertificationPlan": "guarantee.plan",
    "CheckpointWarning": "errors",
    "ConfidenceExit": "views.tokens.policy",
    "FinetuneSettings": "train.depth.settings",
    "GateConfig": "views.tokens.gates",
    "GateSettings": "train.gates.settings",
    "GatesStudySettings": "train.gates.study",
    "Generation": "engine.generate",
    "InputError": "errors",
    "OracleCurve": "oracles.oracle",
    "PredictableCurve": "oracles.predictable",
    "RandomRoute": "routes",
    "Route": "routes",
    "RouteFamily": "routes.families",
    "RouteWarning": "errors",
    "SearchStudySettings": "studies.search",
    "SequenceController": "control.controller",
    "StaticRoutes": "views.tokens.policy",
    "Task": "data.tasks",
    "TokenDepth": "views.tokens.depth",
    "TokenGates": "views.tokens.gates",
    "TokenPolicy": "views.tokens.policy",
    "TokenTrace": "views.tokens.view",
    "TokenizerWarning": "errors",
    "adapter_card": "hf.adapter",
    "certify": "guarantee.plan",
    "family_routes": "routes",
    "finetune": "train.depth.finetune",
    "gates_study": "studies.gates",
    "generate": "engine.generate",
    "load": "hf.load",
    "load_gates": "views.tokens.gate_folder",
    "model_cost": "measure.cost",
    "oracle": "oracles.oracle",
    "predictable_oracle": "oracles.predictable",
    "prompted_view": "views.prompted",
    "search_routes": "search.run",
    "search_study": "studies.search",
    "similarity": "measure.similarity",
    "solve_budget": "oracles.exact.knapsack",
    "study": "studies.study",
    "sweep": "measure.sweep",
    "task": "data.tasks",
    "token_view": "views.tokens.view",
    "train_gates": "train.gates.training",
    "untouched": "hf.untouched",
    "view": "views.view",
    "write_report": "report.kit.page",
}

__all__ = [
    "AdapterCard",
    "Bernoulli",
    "Certificate",
    "CertificationPlan",
    "CheckpointWarning",
    "ConfidenceExit",
    "FinetuneSettings",
    "GateConfig",
    "GateSettings",
    "GatesStudySettings",
    "Generation",
    "InputError",
    "OracleCurve",
    "PredictableCurve",
    "RandomRoute",
    "Route",
    "RouteFamily",
    "RouteWarning",
    "SearchStudySettings",
    "SequenceController",
    "StaticRoutes",
    "Task",
    "TokenDepth",
    "TokenGates",
    "TokenPolicy",
    "TokenTrace",
    "TokenizerWarning",
    "adapter_card",
    "certify",
    "family_routes",
    "finetune",
    "gates_study",
    "generate",
    "load",
    "load_gates",
    "model_cost",
    "oracle",
    "predictable_oracle",
    "prompted_view",
    "search_routes",
    "search_study",
    "similarity",
    "solve_budget",
    "study",
    "sweep",
    "task",
    "token_view",
    "train_gates",
    "untouched",
    "view",
    "write_report",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'depthdial' has no attribute {name!r}")
    return getattr(import_module(f"depthdial.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
