"""The numbers as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthdial.stats.intervals import Interval
from reproduction.folder import ELASTIC, ELASTIC_COMPUTE, SPECIALIST, UNTOUCHED
from reproduction.results import Results, cost_table, sampled_star_table, share_table, star_table

_NAMES = {
    UNTOUCHED: "untouched",
    SPECIALIST: "specialists",
    ELASTIC: "elastic, equal tokens",
    ELASTIC_COMPUTE: "elastic, equal compute",
}


def page(results: Results) -> str:
    """All tables; brackets are 95% intervals over sequences."""
    parts = [
        _about(results.about),
        "# ROUGE-L by cost",
        _rouge(results),
        *([_means(results)] if results.differences else []),
        "# Where the oracle is as good as the full model",
        _stars(results),
        "# Routes of the specialists' oracle at its star",
        _shares(results),
        "# The star by the number of routes to choose from",
        _offered(results),
        "# The predictable oracle",
        _sampled_stars(results),
        _predictable(results),
        "# Training",
        _training(results.training),
    ]
    return "\n\n".join(part for part in parts if part)


def _about(about: Mapping[str, Any]) -> str:
    return (
        f"{about['model']} on {about['task']}, seed {about['seed']}: one greedy answer of at most {about['max_new_tokens']} "
        f"tokens to each of {about['test_rows']} test rows, and {about['samples']} sampled ones (temperature "
        f"{about['temperature']}) to the first {about['sampled_rows']}. Brackets are 95% intervals over test rows; each "
        "specialist was trained once. "
        f"Shuffled scores: means over {about['shuffles']} shuffles. Hardware: {about['hardware']}. "
        f"Commit: {about['commit']}. {about['versions']}."
    )


def _rouge(results: Results) -> str:
    kinds = [kind for kind in _NAMES if kind in results.scores]
    columns = ["layers", *(_NAMES[kind] for kind in kinds)]
    for kind in results.differences:
        columns.append(f"{_NAMES[kind].removeprefix('elastic, ')} − specialists, %")
        kinds.append(f"{kind}_difference_percent")
    rows = [
        [row["layers"], *(_cell(row[kind], 1 if "percent" in kind else 3) for kind in kinds)] for row in cost_table(results)
    ]
    return _table(columns, rows)


def _means(results: Results) -> str:
    told = [f"{_NAMES[kind]}: {_cell(one.mean, 1)}%" for kind, one in results.differences.items()]
    return f"Mean difference to the specialists over the costs that skip something: {'; '.join(told)}."


def _shares(results: Results) -> str:
    columns = ["layers", "sequences", "share", "ROUGE-L there", "T on the same sequences"]
    rows = [
        [
            row["layers"],
            row["sequences"],
            f"{row['share']:.1%}",
            *(_cell(row[name], 3) for name in ("rouge_l_there", "rouge_l_of_T_there")),
        ]
        for row in share_table(results)
    ]
    return _table(columns, rows) if rows else "No budget suffices."


def _offered(results: Results) -> str:
    columns = ["routes, the full one too", "sets", "layers at the star, mean", "lowest", "highest", "shuffled scores, mean"]
    rows = [
        [one.routes, one.sets, *(_cell(value, 1) for value in (one.mean, one.lowest, one.highest, one.shuffled_mean))]
        for one in results.offered
    ]
    return _table(columns, rows)


def _sampled_stars(results: Results) -> str:
    columns = ["weights", "samples chosen on", "as good as T, paid the same samples: layers", "paid the others: layers"]
    rows = []
    for row in sampled_star_table(results):
        others = "never" if row["is_held_out"] else "–"
        if row["paid_the_others_at_layers"] is not None:
            others = f"{row['paid_the_others_at_layers']:.1f}"
        if row["low"] is not None:
            others += f" [{row['low']:.1f}, {'never' if row['high'] is None else format(row['high'], '.1f')}]"
        same = row["paid_the_same_at_layers"]
        rows.append([_NAMES[row["weights"]], row["chosen_on"], "never" if same is None else f"{same:.1f}", others])
    return _table(columns, rows)


def _stars(results: Results) -> str:
    columns = ["weights", "layers at the star", "share of full", "full model's ROUGE-L", "shuffled scores", "reaches T at"]
    rows = []
    for star in star_table(results):
        layers = star["matches_full_at_layers"]
        if layers is not None and star["low"] is not None:
            layers = Interval(layers, star["low"], star["high"], 0)
        share = star["share_of_full"]
        rows.append(
            [
                _NAMES[star["weights"]],
                _cell(layers, 1),
                "–" if share is None else f"{share:.1%}",
                _cell(star["full_rouge_l"], 3),
                _cell(star["shuffled_matches_full_at_layers"], 1),
                _cell(star["reaches_T_at_layers"], 1),
            ]
        )
    return _table(columns, rows)


def _predictable(results: Results) -> str:
    names = ("predictable", "plug_in", "plug_in_all", "permuted", "random", "mixture", "full")
    columns = ["weights", "budget", "layers", "predictable", "one sample", "all samples", "shuffled", "at random", "mixture"]
    rows = []
    for kind, curve in results.predictable.items():
        for row in curve.table():
            layers, value = row["budget"], row["predictable"]
            if row["budget_low"] is not None and row["budget_high"] is not None:
                layers = Interval(layers, row["budget_low"], row["budget_high"], 0)
            if value is not None and row["predictable_low"] is not None:
                value = Interval(value, row["predictable_low"], row["predictable_high"], 0)
            cells = [value, *(row[name] for name in names[1:])]
            rows.append([_NAMES[kind], row["point"], _cell(layers, 1), *(_cell(cell, 3) for cell in cells)])
    return _table([*columns, "full"], rows)


def _training(training: Sequence[Mapping[str, Any]]) -> str:
    columns = ["weights", "routes", "steps", "response tokens per route", "response tokens", "FLOPs", "seconds"]
    rows = [
        [
            row["weights"],
            row["routes"],
            f"{row['steps']:,}",
            f"{row['tokens_per_route']:,}",
            f"{row['response_tokens']:,}",
            f"{row['train_flops']:.3g}",
            "–" if row["train_sec"] is None else f"{row['train_sec']:,.0f}",
        ]
        for row in training
    ]
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [" | ".join(columns), " | ".join(["---", *["---:"] * (len(columns) - 1)])]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Interval | float | None, decimals: int) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, Interval):
        bounds = "" if value.low != value.low else f" [{value.low:.{decimals}f}, {value.high:.{decimals}f}]"
        return f"{value.mean:.{decimals}f}{bounds}"
    return f"{value:.{decimals}f}"
