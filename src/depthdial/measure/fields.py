"""Fields: which field of a data set's rows holds the prompt and which the reference, and reading them out.

Known shapes of rows, by the names of their fields:

| fields                                              | the example is                    |
| --------------------------------------------------- | --------------------------------- |
| `instruction` (and `input` or `context`), reference | an instruction                    |
| `question` (and `input` or `context`), reference    | an instruction                    |
| `article`, reference                                | an article to summarise           |
| `dialogue`, reference                               | a dialogue to summarise           |
| `prompt`, reference                                 | a prompt, left as it is           |
| `turns`, a list whose first text is the prompt      | a prompt without reference        |
| `text`                                              | a prompt without reference        |

The reference is the first of `output`, `response`, `highlights`, `summary`, `completion`, `answer` and `reference`, if any;
the row's id is `id` or `question_id`. Where the names are others a mapping from roles to fields says what is what.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from depthdial.errors import InputError
from depthdial.measure.templates import Form

Row = Mapping[str, Any]

_FORMS: dict[str, Form] = {  # by the field that holds the main text; the first that the rows have counts
    "instruction": "instruction",
    "article": "article",
    "dialogue": "dialogue",
    "prompt": "prompt",
    "question": "instruction",
    "turns": "prompt",
    "text": "prompt",
}
_INPUTS = ("input", "context")
_REFERENCES = ("output", "response", "highlights", "summary", "completion", "answer", "reference")
_IDS = ("id", "question_id")
_WITHOUT_REFERENCE = ("turns", "text")
_MAIN_ROLES = ("prompt", "instruction", "article", "dialogue")
ROLES = (*_MAIN_ROLES, "input", "reference", "output", "id")


@dataclass(frozen=True)
class Record:
    """What a row holds.

    Attributes:
        id: the row's own, None if it has none.
        instruction: the instruction or prompt; empty where there is only a document.
        document: the instruction's input, or the article or dialogue; empty if there is none.
        reference: None if it is empty or there is none.
    """

    id: str | None
    instruction: str
    document: str
    reference: str | None

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to prompt with."""
        return not (self.instruction.strip() or self.document.strip())


@dataclass(frozen=True)
class Columns:
    """Which field holds what.

    Attributes:
        form: what the examples are.
        main: the field of the instruction, prompt or document.
        input, reference, id: the fields of these; None if there are none.
        is_mapped: the user named them.
    """

    form: Form
    main: str
    input: str | None
    reference: str | None
    id: str | None
    is_mapped: bool

    def read(self, row: Row, where: str) -> Record:
        """The record of a row; `where` begins the error message ("Row 3 of 'data.jsonl'").

        An input may be missing or null, as half of Alpaca's are; everything else has to be there, though it may be empty.

        Raises:
            InputError: if a field is missing or holds anything but text.
        """
        main = _text(row, self.main, where)
        reference = _text(row, self.reference, where) if self.reference else ""
        is_document = self.form in ("article", "dialogue")
        has_input = self.input is not None and row.get(self.input) is not None
        return Record(
            id=self._own_id(row, where),
            instruction="" if is_document else main,
            document=main if is_document else _text(row, self.input, where) if has_input and self.input else "",
            reference=reference if reference.strip() else None,
        )

    def _own_id(self, row: Row, where: str) -> str | None:
        if self.id is None:
            return None
        value = _value(row, self.id, where) if self.is_mapped else row.get(self.id)
        return str(value) if isinstance(value, str | int) and value != "" else None


def find_columns(names: Collection[str], fields: Mapping[str, str] | None, what: str) -> Columns:
    """Which of the fields `names` of a data set hold what: as `fields` says, or else by the known shapes.

    Args:
        fields: from roles to field names: one of `prompt`, `instruction` (with `input`), `article` and `dialogue`;
            `reference` (or `output`); `id`. Roles that are not given do not exist. A prompt in a field called article or
            dialogue is one to summarise.
        what: the data set's name, for the error message.

    Raises:
        InputError: if a role is unknown, unsuitable or missing, the field given for one is in no row, or no known field is.
    """
    if fields is not None:
        check_roles(fields)
        absent = next((field for field in fields.values() if field not in names), None)
        if absent is not None:
            raise InputError(f"'{what}' has no field {absent!r}, only {_listed(names)}: name one of these.")
        return _mapped(fields)
    main = _first(_FORMS, names)
    if main is None:
        raise InputError(
            f"'{what}' has none of the known prompt fields, only {_listed(names)}: "
            "say which one it is with fields, such as prompt=NAME,reference=NAME."
        )
    return Columns(
        form=_FORMS[main],
        main=main,
        input=_first(_INPUTS, names) if _FORMS[main] == "instruction" else None,
        reference=None if main in _WITHOUT_REFERENCE else _first(_REFERENCES, names),
        id=_first(_IDS, names),
        is_mapped=False,
    )


def parse_fields(text: str) -> dict[str, str]:
    """A mapping from roles to fields as the command line writes it: "prompt=article,reference=highlights".

    Raises:
        InputError: if it is not of that form, or a role is unknown, unsuitable, missing or given twice.
    """
    mapping: dict[str, str] = {}
    for item in text.split(","):
        role, _, field = (part.strip() for part in item.partition("="))
        if not (role and field):
            raise InputError(f"Cannot read {item.strip()!r} in the fields: write prompt=article,reference=highlights.")
        if role in mapping:
            raise InputError(f"The fields give the role {role!r} twice: keep one.")
        mapping[role] = field
    check_roles(mapping)
    return mapping


def check_roles(fields: Mapping[str, str]) -> None:
    """InputError unless `fields` maps known roles to field names, one main text among them."""
    unknown = next((role for role in fields if role not in ROLES), None)
    if unknown is not None:
        raise InputError(f"Unknown role {unknown!r} in the fields: use {', '.join(ROLES)}.")
    if not all(isinstance(field, str) and field for field in fields.values()):
        raise InputError(f"The fields are {dict(fields)!r}: map each role to the name of a field.")
    mains = [role for role in _MAIN_ROLES if role in fields]
    if len(mains) != 1:
        raise InputError(f"The fields name {' and '.join(mains) or 'no prompt'}: give one of {', '.join(_MAIN_ROLES)}.")
    if "input" in fields and mains != ["instruction"]:
        raise InputError("The fields name an input without an instruction: an input belongs to an instruction.")
    if "reference" in fields and "output" in fields:
        raise InputError("The fields name reference and output, which are the same role: keep one.")


def _mapped(fields: Mapping[str, str]) -> Columns:
    role = next(role for role in _MAIN_ROLES if role in fields)
    main = fields[role]
    is_summary = role == "prompt" and _FORMS.get(main) in ("article", "dialogue")
    return Columns(
        form=_FORMS[main if is_summary else role],
        main=main,
        input=fields.get("input"),
        reference=fields.get("reference", fields.get("output")),
        id=fields.get("id"),
        is_mapped=True,
    )


def _text(row: Row, field: str, where: str) -> str:
    value = _value(row, field, where)
    if field == "turns" and isinstance(value, list) and value:
        value = value[0]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where} has a value of type {type(value).__name__} in field {field!r}: give text.")
    return value


def _value(row: Row, field: str, where: str) -> Any:
    if field not in row:
        raise InputError(
            f"{where} has no field {field!r}, only {_listed(row)}: "
            "add it, or say with fields which ones to use, such as prompt=NAME,reference=NAME."
        )
    return row[field]


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def _first(candidates: Iterable[str], names: Collection[str]) -> str | None:
    return next((name for name in candidates if name in names), None)
