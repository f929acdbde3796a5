"""The page of an evaluation: scores of tasks by depth, in one table and one figure. Never runs a model."""

from __future__ import annotations

from pathlib import Path

from depthdial.report.eval.plot import MOST_PANELS, draw_evaluation, drawn_tasks
from depthdial.report.eval.tables import answer_sentences, depths_table, metrics_table, single_sentences
from depthdial.report.kit.page import write_page
from depthdial.report.kit.parts import Picture, Section, as_table, pairs_table
from depthdial.report.kit.table_files import write_table
from depthdial.report.kit.tables import settings_table
from depthdial.rows.evals import EvalResults

FIGURE = "evaluation"
_INTERVALS = (
    "Intervals are 95% (Student's t) over documents. Standard errors are those of a mean over documents; of a perplexity by "
    "the delta method; of any other metric over 200 resamples of the documents. Less the full model's: the difference on "
    "the same documents, so that its interval is that of the comparison."
)
_CONTEXTS = (
    "Contexts run: route, contexts run the depth as continuations do, which is what an exported folder does; full, they "
    "run every layer, and the first token of a continuation, or of an answer, is the full model's. Layers: that ran for a "
    "token which is scored or generated, in the mean. Of one token: continuations that are a single token."
)


def write_eval_report(folder: Path | str) -> Path:
    """Write `report.html`, `figures/` and `tables/` (Markdown and CSV) of an evaluation's folder.

    Reads study.json and units/*.json. The same files give the same bytes.

    Raises:
        InputError: if the folder holds no evaluation, a file is damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    results = EvalResults.load(folder)
    by_depth = depths_table(results)
    write_table(by_depth, folder / "tables", "depths")
    metrics = {task: metrics_table(results, task) for task in results.tasks}
    for task, table in metrics.items():
        write_table(table, folder / "tables", _file_name(task))
    pictures = []
    if drawn := drawn_tasks(results):
        caption = (
            "The first metric of each task, with 95% intervals over documents. Dashed: the full model's score; dotted: "
            "guessing."
        )
        if len(drawn) < len(results.tasks):
            caption += f" The first {MOST_PANELS} tasks of {len(results.tasks)}; the table has all."
        alt = f"Scores of {len(drawn)} tasks against layers run, at {len(results.depths)} depths."
        pictures.append(Picture(FIGURE, draw_evaluation(results), caption, alt))
    answer = Section(
        "answer",
        "Scores by depth",
        [*answer_sentences(results), *single_sentences(results)],
        pictures,
        [as_table("The first metric of each task", by_depth)],
        notes=[_INTERVALS, _CONTEXTS],
    )
    sections = [
        answer,
        Section("metrics", "Every metric", tables=[as_table(task, table) for task, table in metrics.items()]),
        _provenance(results),
    ]
    title = f"Depthdial eval: {results.model}"
    return write_page(folder, "eval", sections, title, n_layers=results.units[0].n_layers)


def _provenance(results: EvalResults) -> Section:
    made = {name: "; ".join(sorted({unit.provenance.get(name, "") for unit in results.units})) for name in
            ("versions", "hardware", "commit")}  # fmt: skip
    versions = {f"version of {unit.task}": unit.task_version for unit in results.units}
    routes = {f"route of {unit.depth}": unit.route for unit in results.units}
    settings = {name: value for name, value in results.settings.items() if name != "kind"}
    tables = [
        pairs_table("Settings", settings_table(settings)),
        pairs_table("Tasks and depths", list({**versions, **routes}.items())),
        pairs_table("Provenance", list(made.items())),
    ]
    return Section("provenance", "Settings and provenance", tables=tables, is_folded=True)


def _file_name(task: str) -> str:
    return f"task-{''.join(letter if letter.isalnum() or letter in '-_' else '-' for letter in task)}"
