"""Templates: the prompts to the letter, the chat template's own ids, and documents cut without touching what is around."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from depthdial.data.templates import TEMPLATES, Prompter, check_template, resolve_template
from depthdial.errors import InputError

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
RESPONSE_CUE = "\n\n### Response:"


def make_tokenizer(*, chat_template: str | None = None, appends_eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, which decodes what it encoded exactly; it puts <bos> first."""
    specials = ["<bos>", "<eos>", "<|user|>", "<|assistant|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(
        ["the river and the lake and the sea", "the response that the instruction asks for"] * 3, trainer
    )
    single = "<bos> $A <eos>" if appends_eos else "<bos> $A"
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<bos>", 0), ("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = chat_template
    return tokenizer


TOKENIZER = make_tokenizer(chat_template=CHAT)
documents = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=300
)


def decoded(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, clean_up_tokenization_spaces=False))


def test_an_instruction_with_input_is_the_alpaca_form():
    text = Prompter("paper", "instruction", TOKENIZER).text("Sort {these}.", "b, {instruction}, a")
    assert text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\nSort {these}.\n\n### Input:\nb, {instruction}, a\n\n### Response:"
    )


def test_an_instruction_without_input_is_the_short_alpaca_form():
    text = Prompter("paper", "instruction", TOKENIZER).text("Say hello.")
    assert text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hello.\n\n### Response:"
    )


@pytest.mark.parametrize(
    ("template", "form", "texts", "expected"),
    [
        ("paper", "article", ("", "News."), "### Article:\nNews.\n### Summary:\n"),
        ("paper", "dialogue", ("", "A: Hi."), "### Dialogue:\nA: Hi.\n### Summary:\n"),
        ("paper", "prompt", ("Once upon", ""), "Once upon"),
        ("plain", "article", ("", "News."), "News."),
        ("plain", "instruction", ("Sort.", "b a"), "Sort.\n\nb a"),
        ("chat", "instruction", ("Sort.", "b a"), "Sort.\n\nb a"),
        ("chat", "prompt", ("Once upon", ""), "Once upon"),
        ("chat", "article", ("", "News."), "Summarize the following article in three or four sentences.\n\nNews."),
        ("chat", "dialogue", ("", "A: Hi."), "Summarize the following dialogue in one or two sentences.\n\nA: Hi."),
    ],
)
def test_text_of_a_form(template, form, texts, expected):
    assert Prompter(template, form, TOKENIZER).text(*texts) == expected


def test_chat_ids_are_those_of_the_chat_template_itself():
    message = [{"role": "user", "content": "Sort.\n\nb a"}]
    own = TOKENIZER.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    ids = Prompter("chat", "instruction", TOKENIZER).ids("Sort.", "b a")
    assert ids == own
    assert decoded(ids) == "<|user|>\nSort.\n\nb a<eos>\n<|assistant|>\n"


def test_a_prompt_without_chat_begins_with_the_usual_special_token_and_ends_with_the_cue():
    ids = Prompter("paper", "instruction", TOKENIZER).ids("Sort.")
    assert ids[0] == TOKENIZER.bos_token_id
    assert decoded(ids).endswith(RESPONSE_CUE)


def test_a_text_that_begins_with_the_special_token_gets_no_second_one():
    plain = Prompter("plain", "prompt", TOKENIZER)
    assert plain.ids("<bos>the sea") == plain.ids("the sea")
    assert plain.ids("<bos><bos>the sea")[:3] == [TOKENIZER.bos_token_id] * 2 + plain.ids("the sea")[1:2]


def test_an_end_of_sequence_that_the_tokenizer_appends_is_left_out():
    plain = Prompter("plain", "prompt", make_tokenizer(appends_eos=True))
    assert plain.ids("the sea") == Prompter("plain", "prompt", TOKENIZER).ids("the sea")


def test_an_end_of_sequence_that_the_user_wrote_stays():
    assert Prompter("plain", "prompt", TOKENIZER).ids("the sea<eos>")[-1] == TOKENIZER.eos_token_id


def test_auto_is_chat_where_there_is_a_chat_template():
    assert resolve_template("auto", TOKENIZER) == "chat"
    assert resolve_template("auto", make_tokenizer()) == "paper"
    assert resolve_template("plain", TOKENIZER) == "plain"


def test_chat_without_a_chat_template_is_an_input_error():
    with pytest.raises(InputError, match="no chat template"):
        resolve_template("chat", make_tokenizer())


def test_an_unknown_template_lists_the_known():
    with pytest.raises(InputError, match="Unknown template 'alpaca': use auto, chat, paper or plain"):
        check_template("alpaca")
    assert [check_template(name) for name in TEMPLATES] == list(TEMPLATES)


def test_a_chat_template_that_refuses_the_message_is_an_input_error():
    picky = make_tokenizer(chat_template="{{ raise_exception('system message first') }}")
    with pytest.raises(InputError, match="refused a user message \\(system message first\\)"):
        Prompter("chat", "prompt", picky).ids("the sea")


def test_what_fits_is_left_alone():
    prompter = Prompter("paper", "article", TOKENIZER)
    whole = prompter.ids("", "the river and the sea")
    assert prompter.fitted_ids("", "the river and the sea", len(whole)) == whole
    assert prompter.fitted_ids("", "the river and the sea", None) == whole


@given(documents, st.sampled_from(["chat", "paper"]), st.sampled_from(["article", "instruction"]), st.integers(1, 60))
def test_a_cut_prompt_keeps_its_template_and_a_beginning_of_the_document(document, template, form, shortage):
    prompter = Prompter(template, form, TOKENIZER)
    instruction = "Shorten." if form == "instruction" else ""
    whole = prompter.ids(instruction, document)
    # With one character of the document and no budget below that, the form with an input stays.
    budget = max(len(whole) - shortage, len(prompter.ids(instruction, document[:1])) + 12)
    ids = prompter.fitted_ids(instruction, document, budget)
    assert len(ids) <= budget
    assert (ids != whole) == (len(whole) > budget)
    before, after = decoded(prompter.ids(instruction, "<>")).split("<>")
    text = decoded(ids)
    assert text.startswith(before) and text.endswith(after)
    assert document.startswith(text[len(before) : len(text) - len(after)])


@given(st.text(alphabet="thera nd", min_size=40, max_size=400), st.integers(30, 60))
def test_no_more_is_cut_than_the_budget_asks_for(document, budget):
    prompter = Prompter("plain", "prompt", TOKENIZER)
    whole = prompter.ids(document)
    ids = prompter.fitted_ids(document, "", budget)
    if ids != whole:
        kept = decoded(ids).removeprefix("<bos>")
        assert len(ids) == budget or len(prompter.ids(document[: len(kept) + 1])) > budget
    else:
        assert len(ids) <= budget


def test_a_long_document_takes_a_handful_of_passes():
    class Counting(Prompter):
        passes = 0

        def ids(self, instruction, document="", messages=()):
            Counting.passes += 1
            return super().ids(instruction, document)

    document = "the river and then a lake, " * 2000
    ids = Counting("paper", "article", TOKENIZER).fitted_ids("", document, 1433)
    assert len(ids) == 1433
    assert Counting.passes <= 12


def test_without_a_document_the_end_of_the_instruction_is_cut():
    prompter = Prompter("paper", "instruction", TOKENIZER)
    budget = len(prompter.ids("")) + 20
    ids = prompter.fitted_ids("the river " * 100, "", budget)
    assert len(ids) == budget
    assert decoded(ids).endswith(RESPONSE_CUE)


def test_an_instruction_is_cut_when_dropping_the_whole_input_is_not_enough():
    prompter = Prompter("paper", "instruction", TOKENIZER)
    budget = len(prompter.ids("")) + 20
    ids = prompter.fitted_ids("the river " * 100, "short input", budget)
    assert len(ids) == budget
    assert "short input" not in decoded(ids) and decoded(ids).endswith(RESPONSE_CUE)


@pytest.mark.parametrize(("form", "texts"), [("article", ("", "the sea")), ("instruction", ("the river", "the sea"))])
def test_a_budget_below_the_template_is_an_input_error(form, texts):
    with pytest.raises(InputError, match=r"paper template alone takes .* more than the 5 of max_prompt_tokens"):
        Prompter("paper", form, TOKENIZER).fitted_ids(texts[0], texts[1], 5)
