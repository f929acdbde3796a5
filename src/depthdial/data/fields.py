"""Fields: which field of a data set's rows holds the prompt and which the reference, and reading them out.

Known shapes of rows, by the names of their fields (whatever their case, and blanks around them):

| fields                                              | the example is                    |
| --------------------------------------------------- | --------------------------------- |
| `instruction` (and `input` or `context`), reference | an instruction                    |
| `question` (and `input` or `context`), reference    | an instruction                    |
| `problem`, reference                                | an instruction                    |
| `article` or `document`, reference                  | an article to summarise           |
| `dialogue`, reference                               | a dialogue to summarise           |
| `prompt` or `inputs`, reference                     | a prompt, left as it is           |
| `messages`, `conversations`, `conversation`, `chosen` | a conversation, up to the reply that it ends with: the reference |
| `turns`, a list whose first text is the prompt      | a prompt without reference        |
| `text`                                              | a prompt without reference        |

The reference is the first of `output`, `response`, `highlights`, `summary`, `completion`, `answer`, `reference`, `answers`,
`references`, `chosen`, `target`, `targets` and `solution`, if any: a text, a number, a list of texts (several answers, each
as good), SQuAD's `{"text": [..]}`, or messages, of which the assistant's last is the reference. A row may lack it: it then
has no reference. A conversation is used where the other shapes have none. A prompt may itself be a list of messages. The
row's id is `id` or `question_id`. Where the names are others a mapping from roles to fields says what is what.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from depthdial.data.chat_rows import is_conversation, last_reply, read_conversation, split_reply
from depthdial.data.templates import Form, Messages
from depthdial.errors import InputError

Row = Mapping[str, Any]

_CONVERSATIONS = ("messages", "conversations", "conversation", "chosen")
_FORMS: dict[str, Form] = {  # by the field that holds the main text; the first that the rows have counts
    "instruction": "instruction",
    "article": "article",
    "dialogue": "dialogue",
    "prompt": "prompt",
    "question": "instruction",
    "turns": "prompt",
    "problem": "instruction",
    "document": "article",
    "inputs": "prompt",
    **dict.fromkeys(_CONVERSATIONS, "prompt"),
    "text": "prompt",
}
_INPUTS = ("input", "context")
_REFERENCES = (
    *("output", "response", "highlights", "summary", "completion", "answer", "reference", "answers", "references"),
    *("chosen", "target", "targets", "solution"),
)
_IDS = ("id", "question_id")
_WITHOUT_REFERENCE = ("turns", "text", *_CONVERSATIONS)
_MAIN_ROLES = ("prompt", "instruction", "article", "dialogue")
ROLES = (*_MAIN_ROLES, "input", "reference", "output", "id")


@dataclass(frozen=True)
class Example:
    """One sequence.

    Attributes:
        id: unique in its task and stable: the row's own, or task, split and number of the row ("alpaca-test-00012").
        instruction: the instruction or prompt, or the last message of a conversation; empty where there is only a document.
        document: the instruction's input, or the article or dialogue; empty if there is none.
        reference: the answer to compare with, the first of several; None if there is none.
        other_references: answers that are as good; ROUGE takes the best of all, NLL the first alone.
        messages: (role, text) of each message of a conversation of more than one user message; the last text is
            `instruction`. Empty for a plain prompt.
    """

    id: str
    instruction: str
    document: str
    reference: str | None
    other_references: tuple[str, ...] = ()
    messages: Messages = ()

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to prompt with."""
        return not (self.instruction.strip() or self.document.strip())

    @property
    def references(self) -> tuple[str, ...]:
        """All of them."""
        return () if self.reference is None else (self.reference, *self.other_references)

    def texts(self) -> list[Any]:
        """All that decides prompt and references, ready for JSON."""
        plain = [self.instruction, self.document, self.reference]
        # Those of a plain example are what they were before there were others, and so are its fingerprints.
        return plain if not (self.other_references or self.messages) else [*plain, self.other_references, self.messages]


@dataclass(frozen=True)
class Columns:
    """Which field holds what.

    Attributes:
        form: what the examples are.
        main: the field of the instruction, prompt, document or conversation.
        input, reference, id: the fields of these; None if there are none.
        is_mapped: the user named them.
    """

    form: Form
    main: str
    input: str | None
    reference: str | None
    id: str | None
    is_mapped: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are read."""
        return tuple(name for name in (self.main, self.input, self.reference, self.id) if name is not None)

    def read(self, row: Row, where: str) -> Example:
        """The example in a row, its id empty if it has none; `where` begins the error message ("Row 3 of 'data.jsonl'").

        An input or a reference may be missing or null, as half of Alpaca's inputs are; everything else has to be there.

        Raises:
            InputError: if the prompt is missing, or a field holds anything but text (or messages).
        """
        if self.main not in row:
            raise InputError(
                f"{where} has no field {self.main!r}, only {_listed(row)}: "
                "add it, or say with fields which ones to use, such as prompt=NAME,reference=NAME."
            )
        main, given, answer, own_id = (name and row.get(name) for name in (self.main, self.input, self.reference, self.id))
        answers = [text for text in _references(answer, self.reference, where) if text.strip()]
        messages: Messages = ()
        instruction = document = ""
        if is_conversation(main):
            messages, reply = split_reply(read_conversation(main, where))
            answers = answers or [text for text in (reply,) if text and text.strip()]
            instruction = messages[-1][1] if messages else ""
        elif self.form in ("article", "dialogue"):
            document = _text(main, self.main, where)
        else:
            instruction, document = _text(main, self.main, where), _text(given, self.input, where)
        answers = tuple(dict.fromkeys(answers))
        is_plain = len(messages) == 1 and messages[0][0] == "user"
        return Example(
            str(own_id) if isinstance(own_id, str | int) else "",
            instruction,
            document,
            next(iter(answers), None),
            answers[1:],
            () if is_plain else messages,
        )


def find_columns(names: Collection[str], fields: Mapping[str, str] | None, what: str) -> Columns:
    """Which of the fields `names` of a data set hold what: as `fields` says, or else by the known shapes.

    Args:
        fields: from roles to field names: one of `prompt`, `instruction` (with `input`), `article` and `dialogue`;
            `reference` (or `output`); `id`. Roles that are not given do not exist. A prompt in a field called article or
            dialogue is one to summarise; one that holds messages is a conversation.
        what: the data set's name, for the error message.

    Raises:
        InputError: if a role is unknown, unsuitable or missing, the field given for one is in no row, or no known field is.
    """
    if fields is not None:
        check_roles(fields)
        absent = next((field for field in fields.values() if field not in names), None)
        if absent is not None:
            raise InputError(f"'{what}' has no field {absent!r}, only {_listed(names)}: name one of these.")
        role = next(role for role in _MAIN_ROLES if role in fields)
        main, reference = fields[role], fields.get("reference", fields.get("output"))
        is_summary = role == "prompt" and _FORMS.get(main) in ("article", "dialogue")
        form = _FORMS[main if is_summary else role]
        return Columns(form, main, fields.get("input"), reference, fields.get("id"), is_mapped=True)
    known: dict[str | None, str] = {}  # by the name as it is known
    for name in sorted(names, key=lambda name: name != name.strip().lower()):  # one that is written so comes first
        known.setdefault(name.strip().lower(), name)
    main, reference = _first(_FORMS, known), _first(_REFERENCES, known)
    conversation = _first(_CONVERSATIONS, known)
    if main is not None and reference is None and conversation is not None:
        main = conversation
    if main is None:
        raise InputError(
            f"'{what}' has none of the known prompt fields, only {_listed(names)}: "
            "say which one it is with fields, such as prompt=NAME,reference=NAME."
        )
    if main in _WITHOUT_REFERENCE:
        reference = None
    given = _first(_INPUTS, known) if _FORMS[main] == "instruction" else None
    own_id = known.get(_first(_IDS, known))
    return Columns(_FORMS[main], known[main], known.get(given), known.get(reference), own_id, is_mapped=False)


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


def _references(value: Any, field: str | None, where: str) -> list[str]:
    """The texts of a reference; `field` names it in the error message."""
    if is_conversation(value):
        return [last_reply(read_conversation(value, where)) or ""]
    if isinstance(value, Mapping) and "text" in value:  # SQuAD
        return _references(value["text"], field, where)
    if isinstance(value, list):
        return [text for part in value for text in _references(part, field, where)]
    return [_text(value, field, where, "text, or a list of texts")]


def _text(value: Any, field: str | None, where: str, wanted: str = "text") -> str:
    if field == "turns" and isinstance(value, list) and value:
        value = value[0]
    if value is None or (isinstance(value, float) and value != value):  # pandas writes NaN for what is missing
        return ""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"{where} has a value of type {type(value).__name__} in field {field!r}: give {wanted}.")


def mended(example: Example) -> Example:
    """The example with well-formed texts; itself where they are."""

    def mend(value: Any) -> Any:
        return tuple(map(mend, value)) if isinstance(value, tuple) else value and well_formed(value)

    whole = Example(*map(mend, vars(example).values()))
    return example if whole == example else whole


def well_formed(text: str) -> str:
    """`text` as tokenizers take it: of surrogate code points, pairs joined and lone ones replaced by U+FFFD.

    JSON may escape half of a character (`"\\ud83d"`); U+FFFD is what the Unicode standard recommends for it.
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "nothing"


def _first(candidates: Iterable[str], names: Collection[str | None]) -> str | None:
    return next((name for name in candidates if name in names), None)
