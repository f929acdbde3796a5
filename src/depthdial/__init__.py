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

if TYPE_CHECKING:
    from depthdial.choose.controller import SequenceController
    from depthdial.choose.guarantee import Certificate, CertificationPlan, certify
    from depthdial.choose.knapsack import solve_budget
    from depthdial.choose.oracle import OracleCurve, oracle
    from depthdial.choose.predictable import PredictableCurve, predictable_oracle
    from depthdial.choose.search.run import search_routes
    from depthdial.errors import CheckpointWarning, InputError, RouteWarning, TokenizerWarning
    from depthdial.families import RouteFamily
    from depthdial.gate_studies import gates_study
    from depthdial.generation.engine import Generation, generate
    from depthdial.measure.cost import model_cost
    from depthdial.measure.similarity import similarity
    from depthdial.measure.sweep import sweep
    from depthdial.measure.tasks import Task, task
    from depthdial.models.adapter import AdapterCard, adapter_card
    from depthdial.models.gate_folder import load_gates
    from depthdial.models.gates import GateConfig, TokenGates
    from depthdial.models.load import load
    from depthdial.models.prompt import prompted_view
    from depthdial.models.token_depth import TokenDepth
    from depthdial.models.token_policy import Bernoulli, ConfidenceExit, StaticRoutes, TokenPolicy
    from depthdial.models.token_view import TokenTrace, token_view
    from depthdial.models.untouched import untouched
    from depthdial.models.view import view
    from depthdial.report.page import write_report
    from depthdial.routes import RandomRoute, Route, family_routes
    from depthdial.search_studies import SearchStudySettings, search_study
    from depthdial.studies import study
    from depthdial.train.finetune import finetune
    from depthdial.train.gate_settings import GateSettings
    from depthdial.train.gate_study import GatesStudySettings
    from depthdial.train.gate_training import train_gates
    from depthdial.train.settings import FinetuneSettings

__version__ = "0.1.0"

_HOMES = {
    "AdapterCard": "models.adapter",
    "Bernoulli": "models.token_policy",
    "Certificate": "choose.guarantee",
    "CertificationPlan": "choose.guarantee",
    "CheckpointWarning": "errors",
    "ConfidenceExit": "models.token_policy",
    "FinetuneSettings": "train.settings",
    "GateConfig": "models.gates",
    "GateSettings": "train.gate_settings",
    "GatesStudySettings": "train.gate_study",
    "Generation": "generation.engine",
    "InputError": "errors",
    "OracleCurve": "choose.oracle",
    "PredictableCurve": "choose.predictable",
    "RandomRoute": "routes",
    "Route": "routes",
    "RouteFamily": "families",
    "RouteWarning": "errors",
    "SearchStudySettings": "search_studies",
    "SequenceController": "choose.controller",
    "StaticRoutes": "models.token_policy",
    "Task": "measure.tasks",
    "TokenDepth": "models.token_depth",
    "TokenGates": "models.gates",
    "TokenPolicy": "models.token_policy",
    "TokenTrace": "models.token_view",
    "TokenizerWarning": "errors",
    "adapter_card": "models.adapter",
    "certify": "choose.guarantee",
    "family_routes": "routes",
    "finetune": "train.finetune",
    "gates_study": "gate_studies",
    "generate": "generation.engine",
    "load": "models.load",
    "load_gates": "models.gate_folder",
    "model_cost": "measure.cost",
    "oracle": "choose.oracle",
    "predictable_oracle": "choose.predictable",
    "prompted_view": "models.prompt",
    "search_routes": "choose.search.run",
    "search_study": "search_studies",
    "similarity": "measure.similarity",
    "solve_budget": "choose.knapsack",
    "study": "studies",
    "sweep": "measure.sweep",
    "task": "measure.tasks",
    "token_view": "models.token_view",
    "train_gates": "train.gate_training",
    "untouched": "models.untouched",
    "view": "models.view",
    "write_report": "report.page",
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
