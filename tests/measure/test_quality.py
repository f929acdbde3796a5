from __future__ import annotations

import pytest

from depthdial.errors import InputError
from depthdial.measure.quality import METRICS, rouge


def test_rouge_by_hand():
    scores = rouge("the cat sat down", "the cat ran")
    assert scores["rouge_1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert scores["rouge_2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert scores["rouge_l"] == scores["rouge_1"]
    assert scores.keys() < set(METRICS)


def test_stems_count_only_when_asked():
    assert rouge("running cats", "run cat")["rouge_1"] == 0.0
    assert rouge("running cats", "run cat", use_stemmer=True)["rouge_1"] == 1.0


def test_of_several_references_the_best_counts_for_each_score():
    several = rouge("a b c", ["a b x y", "c b a"])
    assert several["rouge_1"] == 1.0  # of the second
    assert several["rouge_2"] == rouge("a b c", "a b x y")["rouge_2"] > rouge("a b c", "c b a")["rouge_2"]
    assert rouge("a b", ["a b"]) == rouge("a b", "a b")


def test_an_empty_answer_scores_nothing():
    assert set(rouge("", "the cat").values()) == {0.0}


@pytest.mark.parametrize(
    "text",
    ["สวัสดีครับ", "你好", "Привет мир", "Привет GPT-4", "नमस्ते दुनिया", "مرحبا", "カタカナ", "안녕하세요", "¡!", "🙂", "", "é"],
)
def test_a_reference_that_the_tokenizer_cannot_see_has_no_score(text):
    assert set(rouge(text, text).values()) == {None}
    assert set(rouge("the cat", text).values()) == {None}


@pytest.mark.parametrize(
    "text", ["สวัสดีครับ", "你好", "Привет мир", "Привет GPT-4", "नमस्ते दुनिया", "مرحبا", "カタカナ", "안녕하세요 세계", "é"]
)
def test_the_unicode_tokenizer_sees_every_script(text):
    same = rouge(text, text, tokenizer="unicode")
    assert same["rouge_1"] == same["rouge_l"] == 1.0
    assert rouge("the cat", text, tokenizer="unicode")["rouge_l"] == 0.0


def test_unicode_words_by_hand():
    assert rouge("Привет, мир", "привет большой мир", tokenizer="unicode")["rouge_1"] == pytest.approx(
        2 * 1 * (2 / 3) / (5 / 3)
    )
    assert rouge("你很好", "你好", tokenizer="unicode")["rouge_1"] == pytest.approx(2 * (2 / 3) * 1 / (5 / 3))
    assert rouge("running cats", "run cat", use_stemmer=True, tokenizer="unicode")["rouge_1"] == 1.0


def test_text_in_a_latin_script_is_scored_as_it_always_was():
    from rouge_score.rouge_scorer import RougeScorer

    for text in ("Café Müller ist schön", "Đường phố ở Hà Nội rất đông người", "žluťoučký kůň", "x = 3.5 € → 7", "the cat"):
        old = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(text, "the Cafe ist o 3 kun ph")
        assert list(rouge("the Cafe ist o 3 kun ph", text).values()) == [score.fmeasure for score in old.values()]


def test_of_several_references_those_that_are_seen_count():
    assert rouge("hello", ["Привет", "hello"])["rouge_1"] == 1.0


def test_an_answer_in_another_script_scores_nothing_against_a_reference_that_is_seen():
    assert set(rouge("你好", "hello there").values()) == {0.0}


def test_an_unknown_tokenizer_is_an_input_error():
    with pytest.raises(InputError, match="Unknown ROUGE tokenizer 'thai': use default or unicode"):
        rouge("a", "a", tokenizer="thai")
