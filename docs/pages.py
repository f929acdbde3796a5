"""Make every figure, and README.md and docs/demo.md, from committed rows: `make pages`. No model runs.

    python docs/pages.py            # all of it
    python docs/pages.py --text     # the pages alone

Templates are in docs/templates, their numbers in docs/facts.py; the board's step also writes docs/leaderboard.md. The other
pages are written by hand, and tests hold their numbers against the rows; figures of an experiment are made again beside its
rows. Two pictures are not made from rows: the screenshot of the playground and the map of gates, whose weights are not kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# benchmarks/, docs/ and experiments/ are no packages that are installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from depthdial.files import read_json
from docs.facts import ROOT, facts

PAGES = {"README.md.jinja": ROOT / "README.md", "demo.md.jinja": ROOT / "docs" / "demo.md"}
# Folders whose rows the report reads: studies, similarity, controllers, gates, searches.
_REPORTS = (
    "demo",
    "similarity/alpaca",
    "similarity/cnn_dailymail",
    "controller/alpaca",
    "controller/dolly",
    "gates",
    "search",
)


def rendered(root: Path = ROOT) -> dict[Path, str]:
    """The text of every page that has a template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = facts(root)
    return {path: environment.get_template(name).render(known) for name, path in PAGES.items()}


def reports() -> None:
    """Figures and tables of what `depthdial report` reads."""
    from depthdial.report.pages import write_report

    for name in _REPORTS:
        write_report(ROOT / "experiments" / name)


def figure_2() -> None:
    """The figures alone: in tables the last digits of intervals depend on the machine."""
    for name in ("alpaca", "alpaca-h200"):
        folder = ROOT / "experiments" / "figure2" / name
        with tempfile.TemporaryDirectory() as out:
            _run("experiments/figure2/run.py", "--from-rows", str(folder), "--out", out)
            shutil.copytree(
                Path(out) / "figures", folder / "figures", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.svg")
            )


def guarantee() -> None:
    """The simulation's table and figure."""
    from experiments.guarantee.results import draw, markdown

    folder = ROOT / "experiments" / "guarantee"
    document = read_json(folder / "simulation.json", "rows")
    (folder / "simulation.md").write_text(markdown(document), encoding="utf-8")
    draw(document, folder / "simulation.png")


def training() -> None:
    """The loss of the elastic adapter's training."""
    from depthdial.report.kit.style import save_figure
    from depthdial.report.study.training_plot import draw_training

    folder = ROOT / "experiments" / "elastic"
    save_figure(draw_training(read_json(folder / "training.json", "rows")), folder / "training.png")


def benchmarks() -> None:
    """Figures of the peers and of the simulation at scale."""
    from benchmarks.peers.figures import draw_quality, draw_speed
    from benchmarks.peers.roster import roster
    from benchmarks.scale.figure import draw

    results, images = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
    peers = read_json(results / "peers.json", "rows")
    draw_speed(peers["rows"], images / "peers-throughput.png")
    depths = list(dict.fromkeys((peers["settings"]["depth"], *peers["settings"]["depths"])))
    scored_as = {name: peer.scored_as for name, peer in roster(depths).items()}
    draw_quality(peers["rows"], peers["quality"], scored_as, depths, images / "peers-time-quality.png")
    draw(read_json(results / "scale.json", "rows")["rows"], images / "scale.png")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


FIGURES: Mapping[str, Callable[[], None]] = {
    "reports": reports,
    "Figure 2": figure_2,
    "guarantees": guarantee,
    "elastic training": training,
    "benchmarks": benchmarks,
    "a larger model": partial(_run, "-m", "experiments.qwen.results"),
    "certificates": partial(_run, "experiments/certified/results.py"),
    "leaderboard": partial(_run, "experiments/leaderboard/run.py", "--only", "board"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="store_true", help="leave the figures as they are")
    if not parser.parse_args().text:
        for name, make in FIGURES.items():
            print(f"{name} ..", flush=True)
            make()
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
