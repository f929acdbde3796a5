"""Timing in turns: every round runs all peers once, so that a noise of the machine hits all alike.

A sample is a file, written by atomic rename: `cells/ROWS/PEER/SESSION-ROUND.json`. Where a run is taken up again, or a peer
comes later, the reference runs beside it once more, and ratios are taken within a round of a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers.peer import REFERENCE, Answers, Peer
from benchmarks.peers.workload import Workload
from depthdial.files import read_json, write_json


@dataclass(frozen=True)
class Sample:
    """One peer's answers to the prompts of one round.

    Attributes:
        session: how many times the run had been started before.
    """

    peer: str
    rows: int
    session: int
    round: int
    answers: Answers


@dataclass(frozen=True)
class Cells:
    """The samples of a run."""

    folder: Path

    def samples(self) -> list[Sample]:
        return [_read(path) for path in sorted(self.folder.glob("*/*/*.json"))]

    def keep(self, sample: Sample) -> None:
        place = self.folder / f"{sample.rows:03d}" / sample.peer / f"{sample.session:03d}-{sample.round:03d}.json"
        write_json(place, asdict(sample))

    def finished(self, peer: str, rows: int) -> set[int]:
        """Rounds of a cell that are there."""
        return {int(path.stem.partition("-")[2]) for path in (self.folder / f"{rows:03d}" / peer).glob("*.json")}

    def next_session(self) -> int:
        return 1 + max((int(path.stem.partition("-")[0]) for path in self.folder.glob("*/*/*.json")), default=-1)


def measure(
    peers: Mapping[str, Peer],
    workload: Workload,
    rows: int,
    new_tokens: int,
    n_rounds: int,
    cells: Cells,
    session: int,
    advance: Callable[[float], None],
) -> dict[str, str]:
    """Run the rounds of one number of rows that are not there yet.

    Args:
        advance: called with how many samples of those that are asked for are there.

    Returns:
        Why a peer gave up, by name.
    """
    done = {name: cells.finished(name, rows) for name in peers}
    warm: set[str] = set()
    failed: dict[str, str] = {}

    def attempt(name: str, number: int, n_tokens: int) -> Answers | None:
        try:
            return peers[name].generate(workload.batch(rows, number), n_tokens)
        except Exception as error:
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
            return None

    for number in range(n_rounds):
        due = [name for name in peers if number not in done[name] and name not in failed]
        advance(len(peers) - len(due))
        is_beside = bool(due) and REFERENCE not in due
        for name in _turns([*([REFERENCE] if is_beside else []), *due], number):
            if name not in warm:  # whatever is made at the first run of a shape; a compiler sees all of it
                warm.add(name)
                attempt(name, number, new_tokens if peers[name].time_limit_sec else min(4, new_tokens))
            answers = None if name in failed else attempt(name, number, new_tokens)
            if answers is not None:
                cells.keep(Sample(name, rows, session, number, answers))
            advance(name in due)
    return failed


def _turns(names: Sequence[str], number: int) -> list[str]:
    """Every other round backwards, so that a drift favours nobody."""
    return list(names if number % 2 == 0 else reversed(names))


def _read(path: Path) -> Sample:
    found = read_json(path, "sample")
    answers = found.pop("answers")
    tokens = tuple(map(tuple, answers["tokens"]))
    return Sample(**found, answers=Answers(tokens, answers["seconds"], answers["note"]))
