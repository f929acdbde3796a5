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
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Field:
    """A field of a settings class, as its source has it: annotation as text, default as a value."""

    annotation: str
    default: Any
    help: str


@functools.cache
def fields_of(settings: str) -> Mapping[str, Field]:
    """The fields of a settings class, `train.depth.settings:FinetuneSettings`, by name; nothing is imported."""
    module, _, name = settings.partition(":")
    source = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    found = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    helps = _attributes(ast.get_docstring(found) or "")
    return {
        node.target.id: Field(ast.unparse(node.annotation), _default(node.value), helps.get(node.target.id, ""))
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return _REQUIRED
    return None if isinstance(node, ast.Call) else ast.literal_eval(node)


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a docstring's section `Attributes:`, as sentences."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()).replace("None for ", "default: ") for name, text in entries}


@dataclass(frozen=True)
class SettingsOptions:
    """Fields of a settings class as options; see `options_of`."""

    settings: str
    panel: str
    common: Sequence[str] = ()
    skip: Sequence[str] = ()
    only: Sequence[str] | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Field]:
        known = fields_of(self.settings)
        names = [name for name in (known if self.only is None else self.only) if name not in self.skip]
        return {name: known[name] for name in sorted(names, key=lambda name: name not in self.common)}

    def parameters(self) -> dict[str, inspect.Parameter]:
        """For typer, by field."""
        return {name: self._parameter(name, one) for name, one in self.fields.items()}

    def _parameter(self, name: str, one: Field) -> inspect.Parameter:
        plain, _, rest = one.annotation.partition(" | ")
        kind: Any = _KINDS.get(plain, str)
        default = ",".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        long = "--" + name.replace("_", "-")
        flags = (f"{long}/--no-{name.replace('_', '-')}" if one.default else long,) if kind is bool else (long,)
        panel = None if name in self.common else self.panel
        told = typer.Option(*self.names.get(name, flags), help=one.help[:1].upper() + one.help[1:], rich_help_panel=panel)
        annotation = Annotated[kind | None if rest or default is None else kind, told]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options_of(
    settings: str,
    panel: str,
    *,
    common: Sequence[str] = (),
    skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
    names: Mapping[str, tuple[str, ...]] | None = None,
) -> SettingsOptions:
    """Options for a verb's parameter, `Annotated[Given, options_of(..)]`.

    Args:
        settings: where the class is, `train.depth.settings:FinetuneSettings`.
        panel: of `--help`, in which they stand.
        common: fields that stand before all panels, first.
        skip, only: fields to leave out, or the only ones to take; `seed` is `--seed` of the data, and left out.
        names: other names of options, by field.
    """
    return SettingsOptions(settings, panel, common, (*skip, "seed"), only, names or {})


@dataclass(frozen=True)
class Given:
    """What the options of a settings class were given."""

    options: SettingsOptions
    values: Mapping[str, Any]

    def settings(self, **more: Any) -> Any:
        """The settings that the options mean.

        Args:
            more: fields that are no options, or that win over them.
        """
        module, _, name = self.options.settings.partition(":")
        read = {one: _read(one, self.options.fields[one], value) for one, value in self.values.items()}
        return getattr(importlib.import_module(f"depthdial.{module}"), name)(**{**read, **more})


def _read(name: str, one: Field, value: Any) -> Any:
    """A field's value, from what the command line has in its place."""
    option, kind = "--" + name.replace("_", "-"), one.annotation.partition(" | ")[0]
    if kind == "tuple[float, ...]":
        return fractions_of(value or "", option)
    if kind == "tuple[str, ...]":
        return parts_of(value or "")
    if kind == "tuple[int, ...]":
        return None if value is None else layers_of(value, option)
    if kind.startswith("Mapping"):
        return {key: _number(key, text, option) for key, text in pairs_of(value, option).items()}
    # 0 where None is something else than the default: "all layers".
    return None if value == 0 and one.annotation.endswith("| None") and one.default is not None else value


def parts_of(text: str) -> tuple[str, ...]:
    """The parts of an option that takes several, divided by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def fractions_of(text: str, option: str) -> tuple[float, ...]:
    """Fractions of the layers, written 0.9 or 90%.

    Raises:
        InputError: if one is no number; `option` is what it was given as.
    """
    try:
        return tuple(float(part.removesuffix("%")) / (100 if part.endswith("%") else 1) for part in parts_of(text))
    except ValueError:
        raise InputError(f"{option} takes fractions of the layers such as 0.9,0.75 or 90%, not {text!r}.") from None


def layers_of(text: str, option: str) -> tuple[int, ...]:
    """Layers such as 1-28 or 1,4,7-9.

    Raises:
        InputError: for a rule or a family, which are no layers.
    """
    ranges = [re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part) for part in text.split(",")]
    found = [n for one in ranges if one for n in range(int(one[1]), int(one[2] or one[1]) + 1)]
    if not all(ranges) or not found:
        raise InputError(f"{option} takes layers such as 1-28, not {text!r}.")
    return tuple(found)


def pairs_of(text: str | None, option: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary.

    Raises:
        InputError: for a part without an equals sign.
    """
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    bad = next((name for name, equals, _ in pairs if not equals), None)
    if bad is not None:
        raise InputError(f"{option} takes pairs such as name=value, not {bad.strip()!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(name: str, text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} gives {name} the weight {text!r}: write a number.") from None
