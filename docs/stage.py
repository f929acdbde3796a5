"""Lay out in `build/docs` what the site is built from: the pages of docs/, and what they show or link to.

    python docs/stage.py

Pages link to pictures and records beside them in the repository (`../experiments/..`), which a site generator does not find
outside of its folder. Here they are copied to where the site has them, and the links are written anew.
"""

from __future__ import annotations

import re
import shutil
from os.path import normpath, relpath
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def place(path: Path) -> Path:
    """Where the site has a file of the repository: pages of docs/ at the top, all others as in the repository.

    Args:
        path: relative to the repository's root.

    Example:
        >>> place(Path("docs/engine.md")), place(Path("experiments/search/README.md"))
        (PosixPath('engine.md'), PosixPath('experiments/search/README.md'))
    """
    return path.relative_to("docs") if path.parts[0] == "docs" else path


def stage(root: Path, out: Path) -> list[Path]:
    """Copy every page of docs/ and, link by link, what it leads to.

    Args:
        root: the repository.
        out: a folder that is emptied first.

    Returns:
        The copied files, relative to `out`.

    Raises:
        FileNotFoundError: for a link that leads nowhere, naming the page.
    """
    shutil.rmtree(out, ignore_errors=True)
    waiting = [path.relative_to(root) for path in sorted((root / "docs").glob("*.md"))]
    copied: dict[Path, Path] = {}
    while waiting:
        source = waiting.pop()
        if source in copied:
            continue
        copied[source] = place(source)
        target = out / copied[source]
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(root / source, target)
            continue
        text = (root / source).read_text(encoding="utf-8")
        for _, link, _ in LINK.findall(text):
            linked = Path(normpath(source.parent / link))
            if not (root / linked).is_file():
                raise FileNotFoundError(f"{source} links to {link}, which is no file.")
            waiting.append(linked)
        target.write_text(LINK.sub(lambda found, source=source: _moved(found, source), text), encoding="utf-8")
    return sorted(copied.values())


def _moved(found: re.Match[str], source: Path) -> str:
    """The link of a page, from where the page is in the site to where its target is."""
    linked = Path(normpath(source.parent / found[2]))
    return f"{found[1]}{Path(relpath(place(linked), place(source).parent)).as_posix()}{found[3]}"


if __name__ == "__main__":
    pages = stage(ROOT, ROOT / "build" / "docs")
    print(f"{len(pages)} files in build/docs")
