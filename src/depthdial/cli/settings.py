"""Options that follow from a settings class: name, type, default and help are those of its fields.

The class is read from its source and not imported, since the modules of settings load torch, and `--help` must not.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from depthdial.errors import InputError

_KINDS = {"int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Field:
    """A field of a settings class or an argument of a function, as its source has it.

    Attributes:
        default: None also for a name (`is_named`), which stands for itself where the option is not given.
    """

    annotation: str
    default: Any
    is_named: bool
    help: str

    @property
    def kind(self) -> str:
        return self.annotation.partition(" | ")[0]


@functools.cache
def fields_of(where: str) -> Mapping[str, Field]:
    """The fields of a class, `train.depth.settings:FinetuneSettings`, or a function's arguments; nothing is imported."""
    module, _, name = where.partition(":")
    source = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    found = next(node for node in ast.parse(source).body if getattr(node, "name", None) == name)
    told: list[tuple[str, ast.expr | None, ast.expr | None]]
    if isinstance(found, ast.FunctionDef):
        arguments = zip(found.args.kwonlyargs, found.args.kw_defaults, strict=True)
        told = [(one.arg, one.annotation, value) for one, value in arguments]
    else:
        assert isinstance(found, ast.ClassDef)
        told = [(ast.unparse(one.target), one.annotation, one.value) for one in found.body if isinstance(one, ast.AnnAssign)]
    helps = _entries(ast.get_docstring(found) or "")
    return {
        name: Field(ast.unparse(kind) if kind else "", _default(value), isinstance(value, ast.Name), helps.get(name, ""))
        for name, kind, value in told
    }


def _default(node: ast.expr | None) -> Any:
    return None if node is None or isinstance(node, ast.Call | ast.Name) else ast.literal_eval(node)


def _entries(docstring: str) -> dict[str, str]:
    """The first sentence of each entry of a docstring's `Attributes:` or `Args:`."""
    section = re.split(r"^(?:Attributes|Args):\n", docstring, maxsplit=1, flags=re.MULTILINE)[-1].partition("\n\n")[0]
    found = {}
    for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        sentence = " ".join(text.replace("`", "").split()).replace("None for ", "default: ").partition(". ")[0]
        if not text.startswith("`"):  # a value, which is written as it is
            sentence = sentence[:1].upper() + sentence[1:]
        found |= dict.fromkeys(names.split(", "), sentence.removesuffix(".") + ".")
    return found


@dataclass(frozen=True)
class options_of:  # noqa: N801 (called as what it does: Annotated[Given, options_of(..)])
    """Options for a parameter of a verb: the fields of `where`, in a `panel` of `--help`.

    Attributes:
        common: fields that stand before all panels, first.
        skip, only: fields to leave out, or the only ones to take; `seed` is `--seed` of the data, and left out.
        names: other names of options, by field.
    """

    where: str
    panel: str
    common: Sequence[str] = ()
    skip: Sequence[str] = ()
    only: Sequence[str] | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Field]:
        known = fields_of(self.where)
        names = [name for name in (known if self.only is None else self.only) if name not in (*self.skip, "seed")]
        return {name: known[name] for name in sorted(names, key=lambda name: name not in self.common)}

    def __call__(self, **values: Any) -> Given:
        """What the options were given."""
        return Given(self, values)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """For typer, by field."""
        return {name: self._parameter(name, one) for name, one in self.fields.items()}

    def _parameter(self, name: str, one: Field) -> inspect.Parameter:
        kind: Any = _KINDS.get(one.kind, str)
        default = ",".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        flag = name.replace("_", "-")
        flags = (f"--{flag}/--no-{flag}" if kind is bool and default is not False else f"--{flag}",)
        panel = None if name in self.common else self.panel
        option = typer.Option(*self.names.get(name, flags), help=one.help, rich_help_panel=panel)
        annotation = Annotated[kind | None if default is None or "None" in one.annotation else kind, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


@dataclass(frozen=True)
class Given:
    """What the options of a settings class or a function were given."""

    options: options_of
    values: Mapping[str, Any]

    def read(self) -> dict[str, Any]:
        """The arguments that they mean."""
        known = self.options.fields
        told = {name: value for name, value in self.values.items() if value is not None or not known[name].is_named}
        return {name: _read("--" + name.replace("_", "-"), known[name], value) for name, value in told.items()}

    def settings(self, **more: Any) -> Any:
        """The settings that they mean, with `more`, which wins over them."""
        module, _, name = self.options.where.partition(":")
        return getattr(importlib.import_module(f"depthdial.{module}"), name)(**{**self.read(), **more})


def _read(option: str, one: Field, value: Any) -> Any:
    """A field's value, from what the command line has in its place."""
    if one.kind == "tuple[float, ...]":
        return fractions_of(value or "", option)
    if one.kind == "tuple[str, ...]":
        return parts_of(value or "")
    if one.kind == "tuple[int, ...]":
        return None if value is None else layers_of(value, option)
    if one.kind.startswith("Mapping"):
        return {key: _weight(key, text, option) for key, text in pairs_of(value, option).items()}
    # 0 where None is something else than the default: "all layers".
    return None if value == 0 and one.annotation.endswith("| None") and one.default is not None else value


def parts_of(text: str) -> tuple[str, ...]:
    """The parts of an option that takes several, divided by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def fractions_of(text: str, option: str) -> tuple[float, ...]:
    """Fractions, written 0.9 or 90%; InputError naming `option` if one is no number."""
    try:
        return tuple(float(part.removesuffix("%")) / (100 if part.endswith("%") else 1) for part in parts_of(text))
    except ValueError:
        raise InputError(f"{option} takes fractions such as 0.9,0.75 or 90%, not {text!r}.") from None


def layers_of(text: str, option: str) -> tuple[int, ...]:
    """Layers, or other whole numbers, such as 1-28 or 1,4,7-9; InputError for a rule or a family, which are no layers."""
    ranges = [re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part) for part in text.split(",")]
    found = [n for one in ranges if one for n in range(int(one[1]), int(one[2] or one[1]) + 1)]
    if not all(ranges) or not found:
        raise InputError(f"{option} takes whole numbers such as 1,8 or 1-28, not {text!r}.")
    return tuple(found)


def pairs_of(text: str | None, option: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary; InputError for a part without an equals sign."""
    pairs = [part.partition("=") for part in parts_of(text or "")]
    bad = next((name for name, equals, _ in pairs if not equals), None)
    if bad is not None:
        raise InputError(f"{option} takes pairs such as name=value, not {bad!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _weight(name: str, text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} gives {name} the weight {text!r}: write a number.") from None
