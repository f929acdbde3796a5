"""The verb `oracle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthdial.cli.console import print_rows, say_next
from depthdial.cli.options import with_bundles
from depthdial.cli.settings import Given, options_of
from depthdial.errors import InputError

OracleOptions = options_of(
    "oracles.oracle:oracle",
    "Oracle",
    only=("metric", "cost", "higher_is_better", "steps", "quality", "weight_by", "latency", "latency_rows"),
    common=("metric", "cost"),
    names={"higher_is_better": ("--higher-is-better/--lower-is-better",)},
)


@with_bundles
def oracle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep or a study.")],
    how: Annotated[Given, OracleOptions],
    budget: Annotated[str | None, typer.Option(help="Also solve for this budget: 80%, 0.8, or layers such as 24.")] = None,
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
) -> None:
    """The best route for every sequence under a global budget (Figure 2); of sampled answers also what is predictable."""
    from depthdial.oracles.costs import LAYER_STEPS
    from depthdial.oracles.modelled import MODELLED_FROM
    from depthdial.oracles.oracle import oracle as choose
    from depthdial.oracles.predictable import predictable_oracle
    from depthdial.report.study.tables import oracle_table
    from depthdial.rows.store import count_samples, load_study_rows
    from depthdial.studies.study import keep_oracle, keep_predictable, one_row_each

    rows = load_study_rows(folder)
    names = rows.column("route").unique().to_pylist()
    if len(names) == 1:
        raise InputError(
            f"The rows hold one route, {names[0]!r}, so an oracle has nothing to choose: sweep several, such as "
            "--routes full,uls:80%,uls:60%."
        )
    n_samples = count_samples(rows)
    common = {**how.read(), "seed": seed}
    metric, quality, weight_by = common["metric"], common.pop("quality"), common.pop("weight_by")
    if n_samples and weight_by is not None:
        raise InputError("Sampled answers have no weight that is known before them: leave --weight-by out.")
    modelled = MODELLED_FROM if common["latency"] else ()
    means = one_row_each(rows, metric, common.get("cost", LAYER_STEPS), *modelled)
    curve = choose(means, quality=quality, weight_by=weight_by, **common)
    chosen = None if budget is None else curve.pick(budget)
    predictable = predictable_oracle(rows, **common) if n_samples > 1 else None
    mean = "weighted by tokens" if quality == "tokens" else "mean over sequences"
    print_rows(f"Oracle by {metric} ({mean}), spending {curve.cost}: {curve.cost_unit}", oracle_table(curve))
    if chosen is not None:
        counts = {name: int((chosen == i).sum()) for i, name in enumerate(curve.routes)}
        typer.echo(f"at a budget of {budget}: " + ", ".join(f"{n} x {name}" for name, n in counts.items() if n))
    typer.echo(f"curve: {keep_oracle(folder, curve, weight_by)}")
    if predictable is not None:
        told = f"chosen on {predictable.chosen_on[-1]} of {n_samples} samples, judged by the others"
        print_rows(f"Predictable oracle by {metric}: {told}", oracle_table(predictable))
        typer.echo(f"curve: {keep_predictable(folder, predictable)}")
    say_next("report", folder)
