"""The rows that a controller was certified on, remembered beside it.

A certificate that is tried again on the same rows until it passes certifies nothing: each try is one more test at the same
level. So the rows of every try are kept, whether it passed or not, and another plan on any of them is refused. The same plan
on the same rows is the same certificate, so that a run that was stopped can be started again.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depthdial.errors import InputError
from depthdial.files import Document
from depthdial.guarantee.plan import Certificate, CertificationPlan

CERTIFIED_FILE = "certified_on.json"
_FILE = Document("depthdial-certified-on", None, "certified-rows", "it says which rows a certificate used, so fit again")


@dataclass
class CertifiedRows:
    """Tries to certify a controller: in memory, and in the controller's folder once it has one.

    Attributes:
        folder: of the controller; None as long as it was neither saved nor read.
        tries: each with the `controller`'s digest, the `plan`'s, and the hashes of the `prompts`.
    """

    folder: Path | None = None
    tries: list[dict[str, Any]] = field(default_factory=list)

    def read(self, folder: Path, certificate: Certificate | None) -> None:
        """Take what a controller's folder remembers, and its certificate's own rows.

        Raises:
            InputError: if the file there is damaged.
        """
        self.folder = folder
        self._add(_read(folder / CERTIFIED_FILE))
        if certificate is not None:
            self._add(_tries([certificate.plan], certificate.provenance.get("prompts", ())))

    def save(self, folder: Path) -> None:
        """Write the tries into a folder of the controller's; the first one is where later tries are written, too."""
        self.folder = self.folder or folder
        tries = [*_read(folder / CERTIFIED_FILE), *self.tries]
        if tries:
            _FILE.write(folder / CERTIFIED_FILE, {"tries": _once(tries)})

    def prompts(self, controller: str | None = None) -> set[str]:
        """Hashes of all prompts that the controller of this digest (default: any) was certified on, or was tried to be."""
        tries = (one for one in self._all() if controller in (None, one["controller"]))
        return {prompt for one in tries for prompt in one["prompts"]}

    def require_untried(self, plans: Sequence[CertificationPlan], prompts: Collection[str]) -> None:
        """Refuse plans on rows that their controller was certified on by another plan, or together with other rows.

        Raises:
            InputError: with how many rows there are; or if the controller's folder, where they are kept, is read-only.
        """
        if plans and self.folder is not None and self.folder.is_dir() and not os.access(self.folder, os.W_OK):
            raise InputError(
                f"{self.folder} is read-only, and a controller's folder keeps the rows that it was certified on: copy the "
                "folder and certify the copy."
            )
        for plan in plans:
            own = [one for one in self._all() if one["controller"] == plan.about.get("controller")]
            if any(one["plan"] == plan.digest and set(one["prompts"]) == set(prompts) for one in own):
                continue
            before = next((one for one in own if set(one["prompts"]) & set(prompts)), None)
            if before is not None:
                shared = len(set(before["prompts"]) & set(prompts))
                raise InputError(
                    f"{shared} of the {len(set(prompts))} sequences were used to certify this controller before, by plan "
                    f"{before['plan']} or among other rows, and a second try certifies nothing: take rows that were not."
                )

    def note(self, plans: Sequence[CertificationPlan], prompts: Collection[str]) -> None:
        """Remember a try; to be called before its result is shown."""
        self._add(_tries(plans, prompts))
        if self.folder is not None:
            self.save(self.folder)

    def _all(self) -> list[dict[str, Any]]:
        if self.folder is not None:  # another process may have certified since
            self._add(_read(self.folder / CERTIFIED_FILE))
        return self.tries

    def _add(self, tries: Sequence[dict[str, Any]]) -> None:
        self.tries[:] = _once([*self.tries, *tries])


def _tries(plans: Sequence[CertificationPlan], prompts: Collection[str]) -> list[dict[str, Any]]:
    return [{"controller": p.about.get("controller"), "plan": p.digest, "prompts": sorted(prompts)} for p in plans]


def _once(tries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({(one["controller"], one["plan"], *sorted(one["prompts"])): one for one in tries}.values())


def _read(path: Path) -> list[dict[str, Any]]:
    return _FILE.read(path, _stored_tries) if path.exists() else []


def _stored_tries(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: one[name] for name in ("controller", "plan", "prompts")} for one in document["tries"]]
