"""Options that follow from settings classes: they are the fields, their defaults the fields' defaults, and all have help."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import MISSING, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from depthdial.cli import app, controller, gates, oracle, search, train
from depthdial.cli.options import with_bundles
from depthdial.cli.settings import Given, layers_of, options_of
from depthdial.errors import InputError
from depthdial.studies.search import SearchStudySettings
from depthdial.train.depth.settings import FinetuneSettings
from depthdial.train.gates.settings import GateSettings
from depthdial.train.gates.study import GatesStudySettings

ALL = [
    *(train.TrainOptions, train.GateRunOptions, train.GateOptions, gates.GatesStudyOptions, search.SearchStudyOptions),
    *(controller.FitOptions, controller.EvaluationOptions, app.StudyOptions),
]


@pytest.mark.parametrize("options", ALL, ids=[one.where.partition(":")[2] for one in ALL])
def test_options_are_the_fields_with_their_defaults_and_helps(options: options_of) -> None:
    module, _, name = options.where.partition(":")
    kind = getattr(importlib.import_module(f"depthdial.{module}"), name)
    defaults = {one.name: one.default for one in fields(kind) if one.default is not MISSING}
    found = options.fields
    assert found and set(found) <= {one.name for one in fields(kind)} and set(options.common) <= set(found)
    for option, one in found.items():
        assert one.help.endswith("."), f"{name}.{option} has no entry among its Attributes"
        assert one.default == defaults.get(option) and not one.is_named
    given = Given(options, {option: parameter.default for option, parameter in options.parameters().items()})
    needed = {"target": 0.5} if kind is GateSettings else {}
    assert given.settings(**needed) == kind(**needed)


@pytest.mark.parametrize("options", [app.SweepOptions, app.SimilarityOptions, search.SearchOptions, oracle.OracleOptions])
def test_options_are_the_arguments_of_a_function_with_their_defaults_and_helps(options: options_of) -> None:
    module, _, name = options.where.partition(":")
    function = getattr(importlib.import_module(f"depthdial.{module}"), name)
    known = inspect.signature(function).parameters
    found = options.fields
    assert found and set(found) <= set(known)
    for option, one in found.items():
        assert one.help.endswith("."), f"{name}.{option} has no entry among its Args"
        assert one.is_named or one.default == known[option].default
    given = Given(options, {option: parameter.default for option, parameter in options.parameters().items()})
    assert given.read() == {option: known[option].default for option, one in found.items() if not one.is_named}


def settings_of(options: options_of, *arguments: str, **more):
    """What a command line comes to."""
    seen = []

    def verb(how: Annotated[Given, options]) -> None:  # type: ignore[valid-type]
        seen.append(how.settings(**more))

    verb.__annotations__["how"] = Annotated[Given, options]
    lone = typer.Typer()
    lone.command()(with_bundles(verb))
    result = CliRunner().invoke(lone, arguments, catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return seen[0]


def test_values_are_read_as_the_fields_have_them() -> None:
    line = ("--emphasis", "uls:3=2, full=0.5", "--rank", "4", "--lora-alpha", "2", "--prompt-gradient", "--method", "full")
    assert settings_of(train.TrainOptions, *line, seed=3) == FinetuneSettings(
        emphasis={"uls:3": 2.0, "full": 0.5}, r=4, lora_alpha=2.0, prompt_gradient=True, method="full", seed=3
    )
    line = ("--methods", "greedy, beam-nll", "--fractions", "90%, 0.5", "--screen", "0")
    assert settings_of(search.SearchStudyOptions, *line) == SearchStudySettings(
        methods=("greedy", "beam-nll"), fractions=(0.9, 0.5), screen=None
    )
    assert settings_of(train.GateOptions, "--alpha", "2", "--controlled", "1-3,5").controlled == (1, 2, 3, 5)
    assert not settings_of(gates.GatesStudyOptions, "--no-controls").controls
    assert settings_of(gates.GatesStudyOptions, "--budgets", "90%, 0.5", "--inputs", "hidden", seed=3) == GatesStudySettings(
        budgets=(0.9, 0.5), inputs=("hidden",), seed=3
    )
    with pytest.raises(InputError, match="--emphasis gives uls:3 the weight 'a': write a number"):
        settings_of(train.TrainOptions, "--emphasis", "uls:3=a")


@pytest.mark.parametrize("text", ["rls:3@0", "", "1-", "a", "-3", "5-3"])
def test_layers_are_numbers_and_ranges(text: str) -> None:
    with pytest.raises(InputError, match="--controlled takes whole numbers such as 1,8 or 1-28, not"):
        layers_of(text, "--controlled")
