"""Fields: the known shapes of rows, mappings by the user, and what is said of a row that does not fit."""

import pytest

from depthdial.data.fields import Example, find_columns, mended, parse_fields
from depthdial.errors import InputError


def read(row, fields=None):
    columns = find_columns(tuple(row), fields, "data.jsonl")
    return columns.form, mended(columns.read(row, "Row 1 of 'data.jsonl'"))


@pytest.mark.parametrize(
    ("row", "form", "example"),
    [
        ({"instruction": "I", "input": "X", "output": "O", "text": "T"}, "instruction", ("", "I", "X", "O")),
        ({"instruction": "I", "output": "O"}, "instruction", ("", "I", "", "O")),
        ({"instruction": "I", "context": "X", "response": "O", "category": "c"}, "instruction", ("", "I", "X", "O")),
        ({"article": "A", "highlights": "H", "id": "f00"}, "article", ("f00", "", "A", "H")),
        ({"id": "13", "dialogue": "D", "summary": "S"}, "dialogue", ("13", "", "D", "S")),
        ({"id": 0, "prompt": "P", "summary": "S"}, "prompt", ("0", "P", "", "S")),
        ({"prompt": "P", "completion": "C"}, "prompt", ("", "P", "", "C")),
        ({"prompt": "P", "response": "C"}, "prompt", ("", "P", "", "C")),
        ({"prompt": "P", "answer": "C"}, "prompt", ("", "P", "", "C")),
        ({"prompt": "P", "reference": "C"}, "prompt", ("", "P", "", "C")),
        ({"prompt": "P"}, "prompt", ("", "P", "", None)),
        ({"question": "Q", "answer": "A"}, "instruction", ("", "Q", "", "A")),
        ({"question_id": 81, "turns": ["first", "second"], "reference": ["r"]}, "prompt", ("81", "first", "", None)),
        ({"text": "T", "summary": "not of a text"}, "prompt", ("", "T", "", None)),
    ],
)
def test_known_shapes(row, form, example):
    assert read(row) == (form, Example(*example))


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_reference_is_none_and_an_empty_input_is_no_input(empty):
    assert read({"instruction": "I", "input": None, "output": empty})[1] == Example("", "I", "", None)


@pytest.mark.parametrize(
    ("fields", "form", "example"),
    [
        ({"prompt": "a", "reference": "b"}, "prompt", ("", "A", "", "B")),
        ({"instruction": "a", "input": "b", "output": "c"}, "instruction", ("", "A", "B", "C")),
        ({"article": "a", "reference": "b"}, "article", ("", "", "A", "B")),
        ({"dialogue": "a", "id": "c"}, "dialogue", ("C", "", "A", None)),
        ({"prompt": "article", "reference": "b"}, "article", ("", "", "T", "B")),
    ],
)
def test_mapped_fields(fields, form, example):
    assert read({"a": "A", "b": "B", "c": "C", "article": "T", "output": "unused"}, fields) == (form, Example(*example))


def test_parse_fields_reads_what_the_command_line_writes():
    assert parse_fields(" prompt=article, reference = highlights") == {"prompt": "article", "reference": "highlights"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read ''"),
        ("prompt", "Cannot read 'prompt'"),
        ("prompt=a,", "Cannot read ''"),
        ("prompt=a,prompt=b", "'prompt' twice"),
        ("question=a", "Unknown role 'question' in the fields: use prompt, instruction"),
        ("reference=a", "name no prompt: give one of prompt, instruction, article, dialogue"),
        ("prompt=a,article=b", "name prompt and article: give one"),
        ("prompt=a,input=b", "input without an instruction"),
        ("prompt=a,reference=b,output=c", "the same role"),
    ],
)
def test_unsuitable_fields_are_input_errors(text, message):
    with pytest.raises(InputError, match=message):
        parse_fields(text)


def test_a_mapping_to_something_else_than_names_is_an_input_error():
    with pytest.raises(InputError, match="map each role to the name of a field"):
        find_columns(("a",), {"prompt": 3}, "data.jsonl")  # pyright: ignore[reportArgumentType]


def test_a_mapped_field_that_no_row_has_is_an_input_error():
    with pytest.raises(InputError, match=r"'data\.jsonl' has no field 'contxt', only a, b"):
        find_columns(("a", "b"), {"instruction": "a", "input": "contxt"}, "data.jsonl")


def test_rows_of_an_unknown_shape_are_an_input_error():
    with pytest.raises(InputError, match="none of the known prompt fields, only a, b: say which"):
        find_columns(("a", "b"), None, "data.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "I", "output": True}, "^Row 1 of 'data.jsonl' has a value of type bool in field 'output'"),
        ({"instruction": "I", "input": ["x"], "output": "O"}, "of type list in field 'input'"),
        ({"prompt": {"role": "user"}}, "of type dict in field 'prompt'"),
        ({"turns": []}, "of type list in field 'turns'"),
    ],
)
def test_a_value_that_is_not_text_is_an_input_error(row, message):
    with pytest.raises(InputError, match=message):
        read(row)


def test_a_row_that_lacks_a_field_is_told_what_it_has():
    columns = find_columns(("instruction", "input", "output"), None, "data.jsonl")
    assert columns.read({"instruction": "I", "output": "O"}, "Row 1").document == ""  # an input is optional
    assert columns.read({"instruction": "I", "input": ""}, "Row 1").reference is None  # and so is a reference
    with pytest.raises(InputError, match=r"^Row 3 of 'data\.jsonl' has no field 'instruction', only input, output"):
        columns.read({"input": "", "output": "O"}, "Row 3 of 'data.jsonl'")
    with pytest.raises(InputError, match="has no field 'instruction', only nothing"):
        columns.read({}, "Row 3 of 'data.jsonl'")


def test_blank_examples_are_recognised():
    assert Example("", " ", "\n", "answer").is_blank
    assert not Example("", "", "document", None).is_blank


def chat(*said):
    return [{"role": role, "content": text} for role, text in said]


TALK = (("system", "S"), ("user", "U"), ("assistant", "A"))


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"messages": chat(*TALK)}, Example("", "U", "", "A", (), TALK[:2])),
        ({"messages": chat(*TALK[1:])}, Example("", "U", "", "A")),  # one user message is a plain prompt
        ({"id": "7", "conversations": [{"from": "human", "value": "U"}]}, Example("7", "U", "", None)),
        ({"prompt": chat(*TALK[:2]), "completion": chat(TALK[2])}, Example("", "U", "", "A", (), TALK[:2])),
        ({"prompt": chat(*TALK), "completion": " "}, Example("", "U", "", "A", (), TALK[:2])),  # the reply it ends with
        ({"prompt": "U", "chosen": chat(*TALK[1:]), "rejected": chat(("assistant", "B"))}, Example("", "U", "", "A")),
        ({"chosen": chat(*TALK[1:]), "rejected": chat(("assistant", "B"))}, Example("", "U", "", "A")),
        ({"prompt": "P", "messages": chat(*TALK)}, Example("", "U", "", "A", (), TALK[:2])),
        ({"prompt": "P", "response": "R", "messages": chat(*TALK)}, Example("", "P", "", "R")),
        (
            {"question": "Q", "context": "C", "answers": {"text": ["a", "b", "a"], "answer_start": [1, 2, 1]}},
            Example("", "Q", "C", "a", ("b",)),
        ),
        ({"question": "Q", "answers": {"text": [], "answer_start": []}}, Example("", "Q", "", None)),
        ({"question": "Q", "answer": ["4", "", "four"]}, Example("", "Q", "", "4", ("four",))),
        ({"question": "Q", "answer": 4}, Example("", "Q", "", "4")),
        ({"prompt": "P", "response": float("nan")}, Example("", "P", "", None)),
        ({" Prompt": "P", "Response ": "R"}, Example("", "P", "", "R")),
        ({"prompt": "a \ud83d b", "response": "\ud83d\ude00"}, Example("", "a \ufffd b", "", "😀")),
    ],
)
def test_what_users_bring(row, example):
    assert read(row)[1] == example


def test_a_prompt_of_bytes_is_refused():
    with pytest.raises(InputError, match="of type bytes in field 'prompt': give text"):
        read({"prompt": b"x"})
