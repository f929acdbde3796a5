"""The numbers in docs/search.md are those of the committed comparison, and hold what its text says."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthdial.report.kit.tables import cell_text
from depthdial.report.search.comparison import Comparison, read_comparison
from depthdial.report.study.summary import gather
from depthdial.routes.families import RouteFamily
from depthdial.rows.store import load_rows
from depthdial.stats.intervals import mean_interval

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments" / "search"
COLUMNS = ("kl", "kl_share", "agreement", "nll", "kl_more")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return read_comparison(FOLDER)


def test_the_table_is_that_of_the_rows(comparison: Comparison) -> None:
    document = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    rows = comparison.rows()
    assert len(rows) == 8 * 3
    for row in rows:
        told = {name: cell_text(name, value) for name, value in row.items()}
        cells = [told[name] for name in ("method", "layers", *COLUMNS)]
        assert f"| {' | '.join(cells)} |" in document


def test_greedy_has_half_of_uls_and_less_than_one_pass_methods_at_every_size(comparison: Comparison) -> None:
    for size in comparison.sizes:
        kl = {name: one.mean("kl") for name, one in comparison.at[size].items()}
        assert kl["greedy-kl"] <= kl["uls"] / 2
        assert kl["greedy-kl"] < min(kl["block-influence"], kl["angular"])


def test_the_committed_table_and_rows_are_one_and_hold_no_text(comparison: Comparison) -> None:
    assert not {"answer", "reference", "prompt"} & set(comparison.table.column_names) - {"answer"}
    assert comparison.table.column("answer").null_count == comparison.table.num_rows
    told = (FOLDER / "tables" / "search.md").read_text(encoding="utf-8")
    assert all(cell_text("kl", row["kl"]) in told for row in comparison.rows())


def test_the_table_of_prompt_depths_is_that_of_its_rows() -> None:
    document = " ".join((ROOT / "docs" / "search.md").read_text(encoding="utf-8").split())
    ran, made_for = {"full": "every layer", "route": "the route"}, {"full": "at full depth", "route": "on the route"}
    found = {}
    for prompts in ran:
        rows = gather(load_rows(ROOT / "experiments" / "prompt_depth" / f"prompts-{prompts}"))
        for route in rows:
            found[prompts, route.name] = route
        for searched, name in (("full", "greedy-kl:24"), ("route", "greedy-kl-route:24")):
            cells = [str(found[prompts, name].interval(column)) for column in ("rouge_l", "agreement", "kl")]
            assert f"| {ran[prompts]} | prompts {made_for[searched]} | {' | '.join(cells)} |" in document
    assert f"The full model has a ROUGE-L of {found['route', 'full'].interval('rouge_l')}" in document
    ends = (found["route", "greedy-kl:24"].values("new_tokens") == 1).sum()
    assert f"{ends} of its 64 answers end with their first token" in document
    for prompts, sign, words in (("route", 1, "gains {} of ROUGE-L there"), ("full", -1, "it loses {} to the other")):
        mine, theirs = (found[prompts, name].by_sequence("rouge_l") for name in ("greedy-kl-route:24", "greedy-kl:24"))
        assert words.format(mean_interval([sign * (mine[s] - theirs[s]) for s in mine])) in document
    for prompts in ran:
        family = RouteFamily.load(ROOT / "experiments" / "prompt_depth" / f"for-{prompts}.json")
        assert family.prompt_depth == prompts
