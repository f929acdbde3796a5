"""Who runs when: the scheduler, ticked by hand."""

from __future__ import annotations

import doctest
import inspect

import pytest

from depthdial.engine import schedules
from depthdial.engine.batch import RowBatch, in_rows
from depthdial.engine.depth import Depth
from depthdial.engine.groups import Work
from depthdial.engine.handles import RequestFailedError
from depthdial.engine.prefill import PrefillInParts
from depthdial.engine.reading import Reader
from depthdial.engine.scheduler import Limits, Scheduler
from depthdial.engine.schedules import Chooser, MeasuredSteps
from depthdial.engine.session import Session
from depthdial.engine.tallies import Tallies
from depthdial.views.snapshot import as_is


class Run:
    """A scheduler, and what it did: `(rows, tokens)` of each part of a prompt's pass, and the rows of each step."""

    def __init__(self, model, tokenizer, monkeypatch, schedule="layer-major", **limits):
        self.events: list[tuple[str, int, int]] = []
        self.session = Session.of(model, tokenizer)
        in_rows(self.session.model)
        self.reader = Reader(self.session, tokenizer)
        given = {"max_rows": 32, "max_tokens": None, "chunk_tokens": 16, **limits}
        self.tallies = Tallies(self.session.n_layers)
        self.scheduler = Scheduler(self.session, Limits(**given), Chooser(schedule, None), self.tallies)
        step, advance = RowBatch.step, PrefillInParts.advance

        def stepped(batch, tokens):
            self.events.append(("step", len(tokens), 1))
            return step(batch, tokens)

        def ran(parts, n_tokens):
            n_before = parts.remaining_tokens
            found = advance(parts, n_tokens)
            self.events.append(("prompt", len(parts._parts.ids), n_before - parts.remaining_tokens))
            return found

        monkeypatch.setattr(RowBatch, "step", stepped)
        monkeypatch.setattr(PrefillInParts, "advance", ran)

    def add(self, *lengths, depth="full", new=4, **options):
        given = {"messages": None, "max_new_tokens": new, "seed": None, "stop_strings": None, "eos_token_id": None}
        prompts = [" ".join(["the cat sat on a mat"] * 20).split()[:n] for n in lengths]
        texts = [" ".join([*words[:-1], word]) for words, word in zip(prompts, _WORDS, strict=False)]
        answers = self.reader.read(texts, depth=depth, on_cancel=lambda: None, **{**given, **options})
        for key, answer in enumerate(answers):
            answer.set_key(key)
        self.scheduler.add(answers)
        return answers

    def tick(self, n=1):
        self.events.clear()
        with as_is(self.session.device):
            for _ in range(n):
                self.scheduler.tick()
        return list(self.events)

    def end(self):
        found = []
        while not self.scheduler.is_idle:
            found += self.tick()
        return found


_WORDS = ("cat", "dog", "two", "three", "four", "five", "six", "one", "mat", "it")


@pytest.fixture
def start(model, tokenizer, monkeypatch):
    return lambda *args, **limits: Run(model, tokenizer, monkeypatch, *args, **limits)


def test_new_rows_begin_to_step_together(start):
    run = start()
    run.add(4, 4, 4, 4, 4, 4)
    assert run.end() == [("prompt", 4, 4), ("prompt", 2, 4), *[("step", 6, 1)] * 3]


def test_prompts_of_about_one_length_share_a_pass(start):
    run = start()
    run.add(3, 8, 3, 7, 2)
    assert [event for event in run.end() if event[0] == "prompt"] == [("prompt", 3, 3), ("prompt", 2, 8)]


def test_rows_that_decode_wait_for_a_chunk_at_most(start):
    run = start()
    run.add(2, new=30)
    run.tick(3)
    run.add(40, new=2)
    run.add(6, 6, 6, new=2)
    expected = [("prompt", 1, 16), ("step", 1, 1)] * 2 + [("prompt", 1, 8), ("step", 1, 1)]
    found = run.end()
    assert found[: len(expected)] == expected[:5] + found[5:6]
    waited = 0
    for kind, rows, tokens in found:
        waited = waited + rows * tokens if kind == "prompt" else 0
        assert waited <= 18  # three prompts of six tokens in one pass are two of them too many for one chunk


def test_a_request_that_is_alone_is_not_held_up(start):
    run = start()
    run.add(40)
    assert run.end() == [("prompt", 1, 16), ("prompt", 1, 16), ("prompt", 1, 8), *[("step", 1, 1)] * 3]


def test_rows_are_taken_as_they_get_free(start):
    run = start(max_rows=2)
    first = run.add(2, 2, 2, new=3)
    assert run.tick(2) == [("prompt", 2, 2), ("step", 2, 1)]
    assert [len(answer.tokens) for answer in first] == [2, 2, 0]
    assert run.scheduler.gauges.waiting == 1 and run.scheduler.gauges.running == 2
    assert run.end() == [("step", 2, 1), ("prompt", 1, 2), *[("step", 1, 1)] * 2]
    assert [answer.handle.result().tokens for answer in first] == [tuple(answer.tokens) for answer in first]


def test_tokens_that_may_come_are_counted(start):
    run = start(max_tokens=14)
    run.add(3, 3, 3, new=4)  # 6 tokens of keys and values each: the last one is never run
    run.tick()
    assert run.scheduler.gauges.running == 2


def test_an_answer_of_one_token_takes_no_step(start):
    run = start()
    answers = run.add(2, 5, new=1)
    assert run.end() == [("prompt", 2, 5)]
    assert all(answer.handle.done for answer in answers) and run.scheduler.gauges.kv_bytes == 0


def test_by_route_rows_are_filled_up_with_the_same_route(start):
    run = start("by-route", max_rows=2)
    answers = run.add(2, 2, 2, 2, 2, 2, depth=["uls:3", "full"] * 3, new=3)
    run.tick(2)
    assert [answer.number for answer in answers if answer.tokens] == [0, 2]
    run.end()
    ends = sorted(answers, key=lambda answer: answer.last_token_sec)
    assert [answer.number for answer in ends] == [0, 2, 4, 1, 3, 5]
    assert run.tallies.layer_calls_run == sum([3, 3, 3, 3, 6, 6, 6, 6])


def test_one_prompt_of_several_answers_runs_once(start):
    run = start()
    run.add(4, new=3, do_sample=True, num_return_sequences=5)
    assert run.end() == [("prompt", 1, 4), *[("step", 5, 1)] * 2]


def test_an_error_of_the_schedulers_own_leaves_nobody_waiting(start):
    run = start(max_rows=1)
    answers = run.add(2, 2, new=5)
    run.tick(2)
    run.scheduler.fail_all(RuntimeError("lost"))
    assert run.scheduler.is_idle and run.scheduler.gauges.kv_bytes == 0
    assert all(answer.handle.done for answer in answers)
    again = run.add(2)
    run.end()
    assert len(again[0].handle.result().tokens) == 4


def test_a_tick_with_nothing_to_do_does_nothing(start):
    assert start().tick(2) == []


def test_steps_are_measured_where_the_schedule_is_automatic(start):
    run = start("auto")
    run.add(2, 3, 4, 2, 2, 2, 3, 2, depth=["uls:3", "full"] * 4, new=3)
    run.end()
    assert run.scheduler._chooser.measured._seconds.keys() == {Work(8, 6, 36)}


def test_fewer_layers_are_tried_where_the_schedule_depends_on_it(start, model, tokenizer, monkeypatch):
    run = start("auto", max_rows=4, chunk_tokens=64)
    depths = ["0,2,4", "full", "0,5"] * 3
    lengths = (2, 3, 4, 2, 5, 2, 3, 2, 6)
    answers = [run.add(n, depth=depth, new=new)[0] for n, depth, new in zip(lengths, depths, (9, 5, 3) * 3, strict=True)]
    run.end()
    kinds = run.scheduler._chooser.measured._seconds.keys()
    assert {2, 4} <= {work.rows for work in kinds} and 3 in {work.layers for work in kinds}
    assert run.scheduler._chooser.measured.is_ready
    other = Run(model, tokenizer, monkeypatch, chunk_tokens=64)
    plain = [other.add(n, depth=depth, new=new)[0] for n, depth, new in zip(lengths, depths, (9, 5, 3) * 3, strict=True)]
    other.end()
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]


def test_the_example_of_measured_steps():
    names = {"MeasuredSteps": MeasuredSteps, "Work": Work}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(schedules.MeasuredSteps) or "", names, "", None, 0)
    told: list[str] = []
    doctest.DocTestRunner().run(example, out=told.append)
    assert example.examples and not told, "".join(told)


class Stuck(Depth):
    """A depth whose pass over prompts cannot begin."""

    name, n_layers = "stuck", 6

    def prepare(self, session, asked): ...

    def prompts_in_parts(self, session, prompts, asked):
        raise ArithmeticError("no pass")

    def assign(self, session, batch, asked): ...


def test_a_depth_whose_pass_cannot_begin_fails_its_own_requests_alone(start):
    run = start(max_rows=4)
    fine = run.add(2, 3)
    run.tick(2)
    stuck = run.add(2, 3, depth=Stuck())
    fine += run.add(4)
    run.end()
    assert all(answer.handle.result(0).tokens for answer in fine)
    for answer in stuck:
        with pytest.raises(RequestFailedError, match=r"\(ArithmeticError: no pass\)"):
            answer.handle.result(0)
