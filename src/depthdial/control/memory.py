"""The rows that a controller was certified on, remembered beside it.

A certificate that is tried again on the same rows until it passes certifies nothing: each try is one more test at the same
level. So the rows of every try are kept, whether it passed or not, and another plan on any of them is refused. The same plan
on the same rows is the same certificate, so that a run that was stopped can be started again.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from depthdial.errors import InputError
from depthdial.files import Document
from depthdial.guarantee.plan import Certificate, CertificationPlan

CERTIFIED_FILE = "certified_on.json"
_FILE = Document("depthdial-certified-on", None, "certified-rows", "it says which rows a certificate used, so fit again")


class Try(NamedTuple):
    """Digests of a controller and of a plan, and the hashes of the prompts, sorted."""

    controller: str
    plan: str
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, plan: CertificationPlan, prompts: Collection[str]) -> Self:
        return cls(plan.about.get("controller", ""), plan.digest, tuple(sorted(set(prompts))))


@dataclass
class CertifiedRows:
    """Tries to certify a controller: in memory, and in the controller's folder once it has one.

    Attributes:
        folder: of the controller; None as long as it was neither saved nor read.
        tries: in the order in which they were made.
    """

    folder: Path | None = None
    tries: list[Try] = field(default_factory=list)

    def read(self, folder: Path, certificate: Certificate | None) -> None:
        """Take what a controller's folder remembers, and its certificate's own rows; InputError for a damaged file."""
        self.folder = folder
        own = [] if certificate is None else [Try.of(certificate.plan, certificate.provenance.get("prompts", ()))]
        self._add([*_read(folder), *own])

    def save(self, folder: Path) -> None:
        """Write the tries into a folder of the controller's; the first one is where later tries are written, too."""
        self.folder = self.folder or folder
        tries = dict.fromkeys([*_read(folder), *self.tries])
        if tries:
            _FILE.write(folder / CERTIFIED_FILE, {"tries": [one._asdict() for one in tries]})

    def prompts(self, controller: str | None = None) -> set[str]:
        """Hashes of all prompts that the controller of this digest (default: any) was certified on, or was tried to be."""
        return {prompt for one in self._all() if controller in (None, one.controller) for prompt in one.prompts}

    def require_untried(self, plans: Sequence[CertificationPlan], prompts: Collection[str]) -> None:
        """Refuse plans on rows that their controller was certified on by another plan, or together with other rows.

        A controller's folder, where they are kept, must not be read-only.
        """
        if plans and self.folder is not None and self.folder.is_dir() and not os.access(self.folder, os.W_OK):
            raise InputError(
                f"{self.folder} is read-only, and a controller's folder keeps the rows that it was certified on: copy the "
                "folder and certify the copy."
            )
        wanted, tries = set(prompts), self._all()
        for new in (Try.of(plan, wanted) for plan in plans):
            before = next((t for t in tries if t.controller == new.controller and wanted & set(t.prompts)), None)
            if before is not None and new not in tries:
                shared = len(wanted & set(before.prompts))
                raise InputError(
                    f"{shared} of the {len(wanted)} sequences were used to certify this controller before, by plan "
                    f"{before.plan} or among other rows, and a second try certifies nothing: take rows that were not."
                )

    def note(self, plans: Sequence[CertificationPlan], prompts: Collection[str]) -> None:
        """Remember a try; to be called before its result is shown."""
        self._add(Try.of(plan, prompts) for plan in plans)
        if self.folder is not None:
            self.save(self.folder)

    def _all(self) -> list[Try]:
        if self.folder is not None:  # another process may have certified since
            self._add(_read(self.folder))
        return self.tries

    def _add(self, tries: Iterable[Try]) -> None:
        self.tries[:] = dict.fromkeys([*self.tries, *tries])


def _read(folder: Path) -> list[Try]:
    path = folder / CERTIFIED_FILE
    return _FILE.read(path, _stored_tries) if path.exists() else []


def _stored_tries(document: dict[str, Any]) -> list[Try]:
    return [Try(one["controller"], one["plan"], tuple(sorted(set(one["prompts"])))) for one in document["tries"]]
