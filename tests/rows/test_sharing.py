from __future__ import annotations

from depthdial.rows.sharing import share_work, work_lock


def test_what_another_is_at_comes_last_and_is_not_done_twice(tmp_path):
    done: set[str] = set()
    lock = work_lock(tmp_path, "a")
    lock.acquire()

    order: list[str] = []

    def run(item: str) -> None:
        order.append(item)
        done.add(item)
        if item == "c":  # meanwhile
            done.add("a")
            lock.release()

    assert list(share_work("abc", tmp_path, str, done.__contains__, run)) == ["b", "c", "a"]
    assert order == ["b", "c"]


def test_what_another_died_at_is_done_here(tmp_path):
    with work_lock(tmp_path, "a"):
        pass
    done: list[str] = []
    assert list(share_work("ab", tmp_path, str, done.__contains__, done.append)) == done == ["a", "b"]


def test_without_a_folder_nobody_shares():
    done: list[int] = []
    assert list(share_work(range(3), None, str, done.__contains__, done.append)) == done == [0, 1, 2]
