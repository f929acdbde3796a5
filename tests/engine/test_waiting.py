from __future__ import annotations

from dataclasses import dataclass, field

from depthdial.engine.waiting import Queue
from depthdial.routes import Route

DEEP, SHALLOW = Route(tuple(range(6)), 6), Route((0, 5), 6)


@dataclass
class _Handle:
    done: bool = False


@dataclass(eq=False)
class _Answer:
    number: int
    route: Route | None
    handle: _Handle = field(default_factory=_Handle)


def queue_of(*routes):
    queue = Queue()
    answers = [_Answer(number, route) for number, route in enumerate(routes)]
    queue.add(answers)
    return queue, answers


def order(queue, schedule):
    found = []
    while len(queue):
        answer = queue.next(schedule)
        queue.remove(answer)
        found.append(answer.number)
    return found


def test_layer_major_takes_them_as_they_came():
    queue, _ = queue_of(DEEP, SHALLOW, None, DEEP)
    assert order(queue, "layer-major") == [0, 1, 2, 3]


def test_by_route_takes_those_of_a_route_together():
    queue, _ = queue_of(DEEP, SHALLOW, None, DEEP, SHALLOW, DEEP)
    assert order(queue, "by-route") == [0, 3, 5, 1, 4, 2]


def test_whoever_comes_later_does_not_hold_up_the_other_routes():
    queue, answers = queue_of(DEEP, SHALLOW)
    assert queue.next("by-route") is answers[0]
    queue.remove(answers[0])
    queue.add([_Answer(2, DEEP), _Answer(3, DEEP)])
    assert order(queue, "by-route") == [1, 2, 3]


def test_those_that_lost_their_rows_come_first():
    queue, answers = queue_of(DEEP, SHALLOW, DEEP)
    for answer in answers[:2]:
        queue.remove(answer)
    queue.put_back([answers[1], answers[0]])
    assert order(queue, "layer-major") == [0, 1, 2]


def test_cancelled_ones_are_forgotten():
    queue, answers = queue_of(DEEP, SHALLOW, DEEP)
    answers[1].handle.done = True
    queue.drop_done()
    assert [answer.number for answer in queue] == [0, 2]
    queue.clear()
    assert not len(queue)
