"""Tasks: what a name or file becomes, that a limit only adds, fingerprints, budgets, and the built-in set itself."""

import copy
import json
import re
import sys
import types
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from depthdial.data.tasks import Example, Task, as_task, encode, task
from depthdial.data.templates import TEMPLATES
from depthdial.errors import InputError

ROWS = [{"instruction": f"Do {i}", "input": "", "output": f"Done {i}"} for i in range(20)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "mine.jsonl", ROWS)


@pytest.fixture(scope="module")
def tokenizer():
    """A word is a token; no special tokens, no chat template."""
    words = [*"abcdefghij", "[UNK]"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


def one(instruction="a b c", document="", reference: str | None = "d e f", **settings) -> Task:
    """A task of one example, plain unless said otherwise."""
    example = Example("x-1", instruction, document, reference)
    made = Task("x", "all", "x.jsonl", "prompt", (example,), "plain", None, None, 0, "0" * 64)
    return replace(made, **settings)


def test_a_file_becomes_a_task(data):
    made = task(data, template="paper", max_prompt_tokens=100, max_response_tokens=50, seed=3)
    assert (made.name, made.split, made.origin, made.form, made.seed) == ("mine", "all", "mine.jsonl", "instruction", 3)
    assert (made.template, made.max_prompt_tokens, made.max_response_tokens) == ("paper", 100, 50)
    assert made.examples[4] == Example("mine-all-00005", "Do 4", "", "Done 4")
    assert len(made.examples) == 20 and made.has_references


def test_a_file_has_no_budgets_of_its_own(data):
    made = task(data)
    assert (made.template, made.max_prompt_tokens, made.max_response_tokens) == ("auto", None, None)


def test_fields_map_roles_to_columns(data):
    made = task(data, fields={"prompt": "output"})
    assert made.form == "prompt" and made.examples[0] == Example("mine-all-00001", "Done 0", "", None)
    assert not made.has_references


@given(
    limits=st.tuples(st.integers(1, 25), st.integers(1, 25)).map(sorted),
    split=st.sampled_from([None, "train", "all"]),
    seed=st.integers(0, 99),
)
def test_a_higher_limit_only_adds_examples(tmp_path_factory, limits, split, seed):
    path = tmp_path_factory.getbasetemp() / "mine.jsonl"
    if not path.exists():
        write_jsonl(path, ROWS)
    few, many = (task(path, split=split, seed=seed, limit=limit) for limit in limits)
    whole = task(path, split=split, seed=seed)
    assert many.examples[: len(few.examples)] == few.examples
    assert whole.examples[: limits[1]] == many.examples
    assert few.source_fingerprint == many.source_fingerprint == whole.source_fingerprint


def test_a_row_keeps_its_number_in_the_file_in_every_split(data):
    for split in ("train", "validation", "test"):
        for example in task(data, split=split, seed=5).examples:
            number = int(example.id.removeprefix(f"mine-{split}-"))
            assert example.instruction == f"Do {number - 1}"


def test_own_ids_are_kept_where_they_are_unique_in_the_whole_split(tmp_path):
    unique = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": "t"} for i in (7, 5, 6)])
    assert [e.id for e in task(unique).examples] == ["7", "5", "6"]
    assert [e.id for e in task(unique, limit=2).examples] == ["7", "5"]
    repeated = write_jsonl(tmp_path / "b.jsonl", [{"id": i, "text": "t"} for i in (7, 5, 7)])
    assert [e.id for e in task(repeated, limit=2).examples] == ["b-all-00001", "b-all-00002"]
    partial = write_jsonl(tmp_path / "c.jsonl", [{"id": "q", "text": "t"}, {"text": "t"}])
    assert [e.id for e in task(partial).examples] == ["c-all-00001", "c-all-00002"]
    with pytest.raises(InputError, match=r"Field 'id' of 'b\.jsonl' is not a different number or text in every row"):
        task(repeated, fields={"prompt": "text", "id": "id"})


def test_an_unfit_row_is_named_with_its_file(tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"answer": "a"}]
    with pytest.raises(InputError, match=r"^Row 2 of 'a\.jsonl' has no field 'question', only answer"):
        task(write_jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(InputError, match=r"^Row 1 of 'b\.jsonl' has an empty 'text'"):
        task(write_jsonl(tmp_path / "b.jsonl", [{"text": " "}]))


def test_a_fault_beyond_the_limit_is_told_too(tmp_path):
    with pytest.raises(InputError, match="Row 3"):
        task(write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}, {"text": True}]), limit=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "Invalid limit 0: use a whole number of at least 1"),
        ({"limit": 2.0}, "Invalid limit 2.0"),
        ({"limit": True}, "Invalid limit True"),
        ({"max_prompt_tokens": 0}, "Invalid max_prompt_tokens 0"),
        ({"max_response_tokens": -1}, "Invalid max_response_tokens -1"),
        ({"seed": "1"}, "Invalid seed '1'"),
        ({"template": "alpaca"}, "Unknown template 'alpaca'"),
        ({"split": "dev"}, "Unknown split 'dev'"),
        ({"fields": {"query": "a"}}, "Unknown role 'query'"),
        ({"fields": {"prompt": "a"}}, "no field 'a'"),
    ],
)
def test_unsuitable_arguments_are_input_errors(data, arguments, message):
    with pytest.raises(InputError, match=message):
        task(data, **arguments)


def test_an_unknown_keyword_raises(data):
    with pytest.raises(TypeError):
        task(data, splits="test")  # pyright: ignore[reportCallIssue]


def test_the_source_fingerprint_follows_every_text_and_the_fields_read(tmp_path):
    def of(rows, **arguments):
        return task(write_jsonl(tmp_path / "a.jsonl", rows), **arguments).source_fingerprint

    base = of(ROWS)
    assert re.fullmatch("[0-9a-f]{64}", base) and base == of(ROWS)
    assert base == of(ROWS, template="plain", max_prompt_tokens=3)
    others = [
        of(ROWS[:-1]),
        of([*ROWS[:-1], {**ROWS[-1], "output": "else"}], limit=1),
        of([{**ROWS[0], "input": "x"}, *ROWS[1:]]),
        of(ROWS[::-1]),
        of(ROWS, fields={"prompt": "instruction", "reference": "output"}),
        of(ROWS, split="train"),
        of([{**row, "id": i} for i, row in enumerate(ROWS)]),
    ]
    assert len({base, *others}) == 8


def test_the_fingerprint_follows_whatever_changes_a_prompt_or_reference():
    changes = [
        {},
        {"template": "paper"},
        {"form": "article"},
        {"max_prompt_tokens": 9},
        {"max_response_tokens": 9},
        {"examples": (Example("x-1", "a b c", "", None),)},
        {"examples": (Example("x-2", "a b c", "", "d e f"),)},
        {"examples": (Example("x-1", "a b", "c", "d e f"),)},
    ]
    assert len({one(**change).fingerprint for change in changes}) == len(changes)
    assert one().fingerprint == one(seed=1, name="y").fingerprint


def test_encoding_without_budgets_keeps_everything(tokenizer):
    (encoded,) = encode(one(), tokenizer)
    assert encoded.id == "x-1"
    assert (encoded.prompt_ids, encoded.reference_ids) == ((0, 1, 2), (3, 4, 5))
    assert encoded.reference == "d e f"


def test_budgets_cut_prompt_and_reference_tokens_but_not_the_reference_text(tokenizer):
    (encoded,) = encode(one(max_prompt_tokens=2, max_response_tokens=1), tokenizer)
    assert (encoded.prompt_ids, encoded.reference_ids) == ((0, 1), (3,))
    assert encoded.reference == "d e f"


def test_what_just_fits_is_not_cut(tokenizer):
    assert encode(one(max_prompt_tokens=3, max_response_tokens=3), tokenizer, context_tokens=6) == encode(one(), tokenizer)


def test_without_a_reference_there_are_no_reference_ids(tokenizer):
    (encoded,) = encode(one(reference=None), tokenizer)
    assert encoded.reference_ids == () and encoded.reference is None


def test_only_the_prompt_carries_special_tokens(tokenizer):
    with_bos = copy.deepcopy(tokenizer)
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(single="j $A", special_tokens=[("j", 9)])
    (encoded,) = encode(one(), with_bos)
    assert (encoded.prompt_ids, encoded.reference_ids) == ((9, 0, 1, 2), (3, 4, 5))


def test_a_reference_is_cut_to_what_the_prompt_leaves_of_the_context(tokenizer):
    (encoded,) = encode(one(), tokenizer, context_tokens=5)
    assert encoded.reference_ids == (3, 4)


def test_a_prompt_has_to_leave_room_for_a_token(tokenizer):
    assert len(encode(one(), tokenizer, context_tokens=4)[0].prompt_ids) == 3
    with pytest.raises(InputError, match=r"'x-1' is 3 tokens long and the model's context 3, .*set max_prompt_tokens"):
        encode(one(), tokenizer, context_tokens=3)


def test_the_task_decides_form_and_template_of_the_prompts(tokenizer):
    made = one("", "a b c d", form="article", template="auto", max_prompt_tokens=6)
    (encoded,) = encode(made, tokenizer)
    unknown = tokenizer.convert_tokens_to_ids("[UNK]")
    assert encoded.prompt_ids == (unknown, unknown, 0, 1, unknown, unknown)  # ### Article: a b ### Summary:
    with pytest.raises(InputError, match="no chat template"):
        encode(replace(made, template="chat"), tokenizer)


def test_a_hub_set_has_its_budgets_and_leaves_incomplete_rows_out(monkeypatch):
    class Rows(list):
        column_names = ("id", "dialogue", "summary")

        def select_columns(self, names):
            return self

    rows = Rows(
        {"id": str(i), "dialogue": d, "summary": s}
        for i, (d, s) in enumerate([("A: hi", "S"), (None, "S"), ("B", ""), ("C", "S")])
    )
    module = types.ModuleType("datasets")
    vars(module).update(load_dataset=lambda *args, **kwargs: rows)
    monkeypatch.setitem(sys.modules, "datasets", module)
    made = task("samsum")
    assert [e.id for e in made.examples] == ["0", "3"] and made.has_references
    assert (made.form, made.max_prompt_tokens, made.max_response_tokens) == ("dialogue", 768, 256)
    assert task("samsum", max_prompt_tokens=50).max_prompt_tokens == 50
    del rows[0], rows[-1]
    with pytest.raises(InputError, match="'knkarthick/samsum' holds no rows to use in its test split"):
        task("samsum")


@pytest.fixture(scope="module")
def builtin():
    return {split: task("builtin", split=split).examples for split in ("calibration", "test", "all")}


@pytest.fixture(scope="module")
def categories():
    import importlib.resources

    lines = (importlib.resources.files("depthdial.data") / "builtin.jsonl").read_text("utf-8").splitlines()
    return {row["id"]: row["category"] for row in map(json.loads, lines)}


def test_builtin_has_24_examples_to_calibrate_and_96_to_test(builtin):
    assert [len(builtin[split]) for split in ("calibration", "test", "all")] == [24, 96, 120]
    assert set(builtin["calibration"]) | set(builtin["test"]) == set(builtin["all"])
    made = task("builtin")
    assert (made.split, made.form, made.has_references, made.examples) == ("test", "instruction", True, builtin["test"])


def test_builtin_examples_are_all_different(builtin):
    examples = builtin["all"]
    assert [e.id for e in examples] == [f"builtin-{i:03d}" for i in range(1, 121)]
    assert len({e.instruction.lower() for e in examples}) == 120
    assert len({e.reference for e in examples}) == 120


def test_builtin_references_are_short_and_clean(builtin):
    for example in builtin["all"]:
        assert 3 <= len(example.reference.split()) <= 60, example.id
        for text in (example.instruction, example.document, example.reference):
            assert text == text.strip() and text.isascii() and "  " not in text, example.id
        assert example.reference != example.document, example.id


def test_builtin_categories_are_spread_evenly_and_any_prefix_is_varied(builtin, categories):
    names = set(categories.values())
    assert len(names) == 12
    for split, each in (("calibration", 2), ("test", 8)):
        found = [categories[e.id] for e in builtin[split]]
        assert Counter(found) == dict.fromkeys(names, each)
        for n in range(1, len(found) + 1):
            assert max(Counter(found[:n]).values()) <= -(-n // 12)


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "chat"])
def test_builtin_encodes_with_every_template(builtin, tokenizer, template):
    encoded = encode(task("builtin", template=template), tokenizer, context_tokens=512)
    assert [e.id for e in encoded] == [e.id for e in builtin["test"]]
    assert all(e.prompt_ids and e.reference_ids for e in encoded)


def test_a_conversation_goes_through_the_chat_template_as_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    said = [{"role": "system", "content": "a"}, {"role": "user", "content": "b c"}, {"role": "assistant", "content": "d"}]
    write_jsonl(path, [{"messages": said}, {"messages": said[1:]}])
    made = task(path)
    words = [*"abcdefghij", "system", "user", "assistant", "[UNK]"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chatty = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    paper = [chatty.decode(e.prompt_ids) for e in encode(made, chatty)]
    assert paper == ["[UNK] a [UNK] b c [UNK]", "b c"]  # System: a, User: b c, Assistant:
    chatty.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"
    encoded = encode(made, chatty)
    expected = [
        chatty.apply_chat_template(m, add_generation_prompt=True, return_dict=True)["input_ids"]
        for m in (said[:2], said[1:2])
    ]
    assert [list(e.prompt_ids) for e in encoded] == expected
    assert [e.reference for e in encoded] == ["d", "d"]
    cut = encode(replace(made, max_prompt_tokens=len(expected[0]) - 1), chatty)[0]
    assert chatty.decode(cut.prompt_ids) == "system a user b assistant"
    assert made.fingerprint != task(path, limit=1).fingerprint


def test_a_name_or_path_stands_for_a_task_wherever_one_is_taken(data):
    assert as_task(str(data)) == task(data) == as_task(task(data))
    assert as_task("builtin").split == "test" and as_task("builtin", held_out=True).split == "calibration"
    with pytest.raises(InputError, match="task is 3: give"):
        as_task(3)  # pyright: ignore[reportArgumentType]


def test_shards_are_one_split_and_keep_their_numbers(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-00000-of-00002.jsonl", ROWS[:12])
    write_jsonl(tmp_path / "data" / "train-00001-of-00002.jsonl", ROWS[12:])
    write_jsonl(tmp_path / "data" / "test-00000-of-00001.jsonl", ROWS[:3])
    made = task(tmp_path, split="train")
    assert [e.instruction for e in made.examples] == [row["instruction"] for row in ROWS]
    assert len({e.id for e in made.examples}) == 20 and len(task(tmp_path).examples) == 3
    assert as_task(tmp_path, held_out=True).split == "train"
