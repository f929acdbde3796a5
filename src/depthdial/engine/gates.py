"""The folder of trained gates as a depth."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from depthdial.engine.depth import Asked, Assignment, Batch, TokenwiseDepth
from depthdial.engine.session import Session
from depthdial.views.tokens.gate_folder import gates_depth, load_gates
from depthdial.views.tokens.gates import TokenGates


@dataclass(frozen=True)
class GatesDepth(TokenwiseDepth):
    """Gates that draw at their odds, as they were trained, on the weights that they were trained beside.

    Attributes:
        folder: of `train_gates`.
    """

    folder: Path
    _sessions: Any = field(default_factory=weakref.WeakKeyDictionary, compare=False, repr=False)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> GatesDepth:
        """Read a folder; whether its gates fit a model is asked by `prepare`.

        Raises:
            InputError: if it holds no gates, or damaged ones.
        """
        return cls(gates_depth(TokenGates.from_pretrained(folder), "sampled"), Path(folder))

    @property
    def trained_on(self) -> frozenset[str]:
        """Hashes of the prompts that the gates were trained on."""
        return self.depth.trained_on

    def prepare(self, session: Session, asked: Asked) -> None:
        """As `Depth.prepare`; the gates' weights and adapter are put on a view of the model."""
        own, inner = self._beside(session)
        inner.prepare(own, asked)

    def assign(self, session: Session, batch: Batch, asked: Asked) -> Assignment:
        own, inner = self._beside(session)
        if own is not session:
            batch = replace(batch, full=None)  # made by other weights
        return replace(inner.assign(own, batch, asked), session=own)

    def _beside(self, session: Session) -> tuple[Session, TokenwiseDepth]:
        """What the gates run on, and the gates there."""
        found = self._sessions.get(session.given)
        if found is None:
            model, gates = load_gates(self.folder, session.given)
            own = session if model is session.given else session.beside(model)
            found = own, TokenwiseDepth(gates_depth(gates, "sampled"))
            self._sessions[session.given] = found
        return found
