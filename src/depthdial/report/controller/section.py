"""The section on a controller: what it gains at equal cost, beside all that it must beat, and what was certified."""

from __future__ import annotations

from depthdial.control.judge.headroom import ControllerScore
from depthdial.report.controller.plot import draw_calibration, draw_controller, draw_controller_shares
from depthdial.report.controller.scores import ControllerScores
from depthdial.report.controller.tables import certificate_table, controller_table, fixed_table, headline, unit_of
from depthdial.report.kit.curves import METRIC_NAMES
from depthdial.report.kit.parts import Picture, Section, Table, as_table, file_name, pairs_table
from depthdial.report.kit.tables import settings_table

_NOTE = (
    "Static mixture: each sequence's route drawn at random in fixed proportions, the best in hindsight on these sequences, "
    "at the very mean cost that was spent. Random: the controller's own shares of the routes, handed out blindly. "
    "Predictable oracle: chooses within the budget by what other answers to the same prompt were worth, and is paid the "
    "answer that counts. Oracle: chooses on what it is paid, luck included. Oracles stand at the controller's cost. "
    "Intervals: bootstrap over sequences, everything computed anew on each resample. Prices were set on other rows than "
    "these. A percentage is given only where the gap's interval lies above 0."
)


def controller_section(scores: ControllerScores) -> Section:
    """Pictures, tables and sentences of the scores, and what was certified."""
    first = next(iter(scores.scores.values()))
    pictures = [one for name, score in scores.scores.items() for one in _pictures(name, score, whole=score is first)]
    tables = [one for name, score in scores.scores.items() for one in _tables(name, score, whole=score is first)]
    notes = [_NOTE]
    if scores.certificates:
        caption = "Guarantees: the expected loss of quality against the full model, by setting"
        tables.append(as_table(caption, certificate_table(scores.certificates)))
        notes += [certificate.statement for certificate in scores.certificates]
    for caption, settings in (("Cost of the controller itself", scores.overhead), ("The controller", scores.controller)):
        if settings:
            tables.append(pairs_table(caption, settings_table(settings)))
    title = "Sequence controller: quality at equal cost"
    return Section("controller", title, headline(first), pictures, tables, notes=notes)


def _pictures(name: str, score: ControllerScore, *, whole: bool) -> list[Picture]:
    """The main picture of every score; of the first, those of its choices and predictions too."""
    quality, unit = METRIC_NAMES.get(score.metric, score.metric), unit_of(score)
    caption = f"The same for {name}: {quality} against mean cost above, gains at equal cost below."
    if whole:
        caption = (
            f"Above: {quality} against mean cost in {unit}. Gray points: one route for all sequences. Controller: at each "
            f"of its budgets, with {score.confidence:.0%} bootstrap intervals over sequences; the band is that of the "
            "predictable oracle. Below: how far each lies above the best static mixture (the dashed line) at the cost that "
            "it spent itself; the oracles at the controller's cost."
        )
    alt = (
        f"Two panels over mean cost: quality of {len(score.methods)} ways of choosing, and their gains. {headline(score)[0]}"
    )
    pictures = [Picture(f"controller-{file_name(name)}", draw_controller(score), caption, alt)]
    if not whole:
        return pictures
    caption = "Share of the test sequences that the controller sends to each route, by budget; mean over the seeds."
    alt = f"Areas: shares of {len(score.routes)} routes over {len(score.budgets)} budgets."
    pictures.append(Picture("controller-shares", draw_controller_shares(score), caption, alt))
    figure = draw_calibration(score)
    if figure is not None:
        caption = (
            "Test sequences in bins of like prediction, a panel for each route: mean predicted against mean measured "
            "quality, with 95% intervals. On the dashed line predictions can be taken at their word. Explained: share of "
            "the measured variance, of which a part is luck that nothing could predict."
        )
        alt = "Predicted against measured quality by route: " + "; ".join(
            f"{part.route} explains {100 * part.explained:.0f}%" for part in score.calibration if part.explained is not None
        )
        pictures.append(Picture("controller-calibration", figure, caption, alt))
    return pictures


def _tables(name: str, score: ControllerScore, *, whole: bool) -> list[Table]:
    n_budgets, about = len(score.budgets), f"{name}, costs in {unit_of(score)}"
    tables = []
    if n_budgets > 1:
        caption = (
            f"Mean over {n_budgets} budgets: {about}; {score.confidence:.0%} intervals over {score.n_sequences} sequences"
        )
        tables.append(as_table(caption, controller_table(score, -1)))
    tables.append(as_table(f"At each budget: {about}", controller_table(score)))
    if whole:
        budgets = ", ".join(f"{budget:g}" for budget in score.budgets)
        caption = f"Each route for all sequences, and how often the controller chooses it at budgets of {budgets}"
        tables.append(as_table(caption, fixed_table(score)))
    return tables
