"""A run from its settings to samples, layer counts and scores, each kept in its folder as it comes."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.layer_calls import counting, layers_per_token
from benchmarks.peers.peer import REFERENCE, Peer, Subject
from benchmarks.peers.quality import Exam, score
from benchmarks.peers.remote import Remote
from benchmarks.peers.roster import chosen, roster
from benchmarks.peers.rounds import Cells, measure
from benchmarks.peers.workload import Workload
from depthdial.files import check_out_folder, claim, read_json, write_json
from depthdial.progress import progress_bar
from depthdial.views.signature import signature


@dataclass(frozen=True)
class Settings:
    """What a run measures.

    Attributes:
        model, task: names or files.
        depth: of the peers on a route; `depths` are further ones, for the plot of time against quality.
        prompts: how many there are to answer.
        scored_prompts: how many of them quality is measured on.
        new_tokens: of each answer, none ends earlier.
        rows: sizes of batches.
        peers: names or patterns; empty for all.
        python: interpreters of peers that run in an environment of their own.
        with_quality: whether quality is measured too.
    """

    out: Path
    model: str = "smollm2-135m"
    task: str = "builtin"
    depth: str = "50%"
    depths: tuple[str, ...] = ("60%", "70%", "80%", "90%")
    prompts: int = 64
    scored_prompts: int = 24
    new_tokens: int = 64
    rows: tuple[int, ...] = (1, 8, 32)
    rounds: int = 5
    threads: int = 2
    peers: tuple[str, ...] = ()
    python: tuple[tuple[str, str], ...] = ()
    with_quality: bool = True

    @property
    def all_depths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.depth, *self.depths)))


@dataclass
class Run:
    """A run in progress.

    Attributes:
        absent: why a peer is not among `ready`, by name.
    """

    settings: Settings
    subject: Subject
    ready: dict[str, Peer]
    absent: dict[str, str]
    workload: Workload

    @classmethod
    def begin(cls, settings: Settings, given: tuple[Any, Any] | None = None) -> Run:
        chosen(settings.peers, list(roster(settings.all_depths)))  # before anything is loaded
        out = check_out_folder(settings.out)
        fixed = {name: getattr(settings, name) for name in ("model", "task", "depth", "prompts", "new_tokens", "threads")}
        claim(out / "run.json", fixed, "run of peers")
        torch.set_num_threads(settings.threads)
        subject = Subject(settings.model, settings.depth, out / "work", settings.threads, given)
        workload = Workload.of(subject, settings.task, settings.prompts, settings.new_tokens, out / "prompts.json")
        return cls(settings, subject, {}, {}, workload)

    def count_layers(self) -> dict[str, float]:
        """Layers that run for a token of an answer, of every peer whose layers are the subject's."""
        found: dict[str, float] = {}
        for name in self.names():
            file = self.settings.out / "layers" / f"{name}.json"
            if file.exists():
                found[name] = read_json(file, "count of layers")["layers_per_token"]
                continue
            peer = self._fresh(name, is_timed=False)
            if not peer.has_layers or self._is_absent(peer):
                continue
            with counting(self.subject.model) as seen:
                try:
                    peer.prepare(self.subject)
                    answer = functools.partial(peer.generate, self.workload.batch(1, 0))
                    found[name] = layers_per_token(seen, answer, max(2, min(16, self.settings.new_tokens)), 1)
                except Exception as error:
                    self.absent[name] = _sentence(error)
                    continue
                finally:
                    peer.close()
            write_json(file, {"layers_per_token": found[name]})
        return found

    def time(self, cells: Cells) -> None:
        """All rounds of all numbers of rows."""
        settings, session = self.settings, cells.next_session()
        self._prepare()
        total = sum(self._takes(peer, rows) for peer in self.ready.values() for rows in settings.rows) * settings.rounds
        with progress_bar("rounds", total) as advance:
            for rows in settings.rows:
                able = {name: peer for name, peer in self.ready.items() if self._takes(peer, rows)}
                asked = (self.workload, rows, settings.new_tokens, settings.rounds, cells, session)
                for name, why in measure(able, *asked, advance).items():
                    self.absent[name] = f"At {rows} rows it gave up: {why}"

    def scores(self) -> dict[str, dict[str, Any]]:
        """Quality by peer, of those that have one of their own."""
        settings, found = self.settings, {}
        full = self.ready[REFERENCE]
        exam = Exam.of(
            full, self.subject, self.workload, settings.new_tokens, settings.scored_prompts, settings.out / "exam"
        )
        own = [name for name, peer in self.ready.items() if peer.scored_as == name]
        with progress_bar("quality", len(own)) as advance:
            for name in own:
                file = settings.out / "quality" / f"{name}.json"
                if not file.exists():
                    peer = self.ready[name]
                    try:
                        write_json(file, peer.score(exam.folder) if isinstance(peer, Remote) else score(peer, exam))
                    except Exception as error:
                        self.absent[name] = f"Its quality is not known: {_sentence(error)}"
                if file.exists():
                    found[name] = read_json(file, "quality")
                advance()
        return found

    def names(self) -> list[str]:
        known = list(roster(self.settings.all_depths))
        return chosen(self.settings.peers, known)

    def close(self) -> None:
        for peer in self.ready.values():
            peer.close()

    def _fresh(self, name: str, *, is_timed: bool = True) -> Peer:
        peer, elsewhere = roster(self.settings.all_depths)[name], dict(self.settings.python)
        if name in elsewhere or peer.time_limit_sec is not None or (is_timed and peer.keeps_threads):
            return Remote(peer, self.settings.all_depths, elsewhere.get(name, sys.executable))
        return peer

    def _is_absent(self, peer: Peer) -> bool:
        try:
            why = peer.why_absent(self.subject)
        except Exception as error:
            why = _sentence(error)
        if why is not None:
            self.absent[peer.name] = why
        return why is not None

    def _prepare(self) -> None:
        """Make ready who is there.

        Raises:
            RuntimeError: for a peer that changes the model of all, hooks on it among them, which would slow the others.
        """
        before = signature(self.subject.model)
        for name in self.names():
            peer = self._fresh(name)
            if name in self.absent or self._is_absent(peer):
                continue
            try:
                peer.prepare(self.subject)
            except Exception as error:
                self.absent[name] = f"It cannot be prepared: {_sentence(error)}"
                peer.close()
                continue
            if signature(self.subject.model) != before:
                raise RuntimeError(f"{name} changes the model that the others run: give it a copy")
            self.ready[name] = peer

    @staticmethod
    def _takes(peer: Peer, rows: int) -> bool:
        return peer.most_rows is None or rows <= peer.most_rows


def _sentence(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
