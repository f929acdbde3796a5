"""The numbers of README.md and docs/demo.md, read from committed rows. `docs/pages.py` writes them into the pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from depthdial.files import read_json
from depthdial.oracles.oracle import OracleCurve, oracle
from depthdial.report.kit.tables import cell_parts, cell_text
from depthdial.report.study.tables import headline
from depthdial.rows.store import load_study_rows
from depthdial.stats.intervals import Interval
from experiments.qwen.results import read_lines

ROOT = Path(__file__).resolve().parent.parent
# Titles of the peers in README, and their names in the rows: of speed, and of quality where that was scored under another.
_PEERS = {
    "transformers `generate`, fp32": ("hf-eager", "hf-eager"),
    "transformers `generate`, bf16": ("bf16", "bf16"),
    "8-bit weights and inputs (PyTorch)": ("int8-dynamic", "int8-dynamic"),
    "llama.cpp, f16": ("llama.cpp-f16", "llama.cpp-f16"),
    "llama.cpp, Q4_1": ("llama.cpp-native", "llama.cpp-native"),
    "gemma-3-270m, another small model": ("gemma-3-270m", "gemma-3-270m"),
    "tide-inference": ("tide", None),
    "`assistant_early_exit=15` of transformers": ("hf-early-exit", None),
    "**`dd.Engine`, 30 layers, fp32**": ("engine-full", "hf-eager"),
    "**`dd.Engine`, 30 layers, bf16**": ("engine-bf16-full", "engine-bf16-full"),
    "**`dd.Engine`, 27 layers, bf16**": ("engine-bf16@90%", "engine-bf16@90%"),
    "**`dd.Engine`, 15 layers, bf16**": ("engine-bf16@50%", "engine-bf16@50%"),
}


def facts(root: Path = ROOT) -> dict[str, Any]:
    """Everything that the templates ask for, by subject."""
    return {
        "demo": demo(root / "experiments" / "demo"),
        "engine": engine(root / "benchmarks" / "results"),
        "figure2": figure2(root / "experiments" / "figure2" / "alpaca-h200"),
        "peers": peers(root / "benchmarks" / "results" / "peers.json"),
        "elastic": elastic(root / "experiments" / "elastic"),
        "leaderboard": leaderboard(root / "experiments" / "leaderboard" / "board.json"),
        "qwen": qwen(root / "experiments" / "qwen" / "rows"),
        "certified": certified(root / "experiments" / "certified" / "results.json"),
        "controller": controller(root / "experiments" / "controller" / "alpaca"),
    }


def demo(folder: Path) -> dict[str, Any]:
    """The rows of `make demo`: a cell for each route and column, and the oracle."""
    timing = read_json(folder / "timing.json", "rows")
    rows = load_study_rows(folder)
    routes = {row["route"]: _told(row) for row in headline(rows, timing=timing)}
    document = read_json(folder / "oracle.json", "rows")
    curve, by_layers = (OracleCurve.from_dict(document[name]) for name in ("rouge_l", "rouge_l by layers"))
    full_length = oracle(rows, steps="full", n_permutations=0)
    star = curve.table()[0]
    return {
        "routes": routes,
        "sequences": len(rows["sequence_id"].unique()),
        "star_layers": f"{star['layers']:.1f}",
        "star": _share(curve),
        "star_share": f"{curve.matches_full_at:.0%}",
        "star_value": f"{curve.full_value:.3f}",
        "star_full_length": _share(full_length, 0, percent="%"),
        "star_by_layers": _share(by_layers, 1, scale=1),
        "star_by_layers_share": f"{(by_layers.matches_full_at or 0) / 30:.0%}",
        "kept": {name: f"{row['value'] / routes['full']['value']:.0%}" for name, row in routes.items()},
    }


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of a route, as the report's table has them; `value` is ROUGE-L as a number."""
    ranged = ("layers", "cost_percent", "rouge_l")
    cells = {str(key): cell_text(key, value) if key in ranged else cell_parts(key, value)[0] for key, value in row.items()}
    value = float(cells["rouge_l"].split(" ")[0])
    return {**cells, "speed": f"{row['speed']:.2f}x", "value": value, "mean": f"{value:.3f}"}


def _share(curve: OracleCurve, decimals: int = 1, *, scale: float = 100, percent: str = "") -> str:
    low, high = curve.matches_full_interval or (float("nan"), float("nan"))
    at = curve.matches_full_at if curve.matches_full_at is not None else float("nan")
    return f"{scale * at:.{decimals}f}{percent} [{scale * low:.{decimals}f}, {scale * high:.{decimals}f}]"


def engine(results: Path) -> dict[str, str]:
    """Steps of the engine, and what views and the oracle cost."""
    found = {(row["what"], row["rows"]): row for row in read_json(results / "engine.json", "rows")["rows"]}
    whole, decode = read_json(results / "oracle.json", "rows")["comparisons"][-1], read_json(results / "decode.json", "rows")
    view = next(row for row in read_json(results / "view.json", "rows")["rows"] if row["route"] == "uls:30")
    told = {f"{what}_{rows}_ms": f"{found[what, rows]['ms']:.1f}" for what in ("full", "half") for rows in (1, 32)}
    told |= {f"{what}_{rows}_hf": f"{found[what, rows]['times HF']:.1f}" for what in ("full", "half") for rows in (1, 32)}
    return {
        **told,
        "view_ms": f"{view['median (ms)']:.1f}",
        "view_over_pruned": f"{decode['view_over_pruned']:.2f}",
        "oracle_sec": f"{whole['curve_sec']:.2f}",
        "oracle_ratio": f"{whole['ratio']:.0f}",
    }


def figure2(folder: Path) -> dict[str, str]:
    """The star of the paper's Figure 2 on specialists, without its luck, and on shuffled scores."""
    told = read_json(folder / "table.json", "rows")
    ours = next(row for row in told["oracle_matches_full"] if row["weights"] == "specialist")
    paid = next(row for row in told["sampled_matches_full"] if row["chosen_on"] == 4)
    low, high = (100 * ours[name] / 30 for name in ("low", "high"))
    return {
        "rows": str(told["about"]["test_rows"]),
        "sampled_rows": str(told["about"]["sampled_rows"]),
        "star": f"{100 * ours['share_of_full']:.1f}% [{low:.1f}, {high:.1f}]",
        "shuffled": f"{100 * ours['shuffled_matches_full_at_layers'] / 30:.1f}%",
        "paid_others": f"{100 * paid['paid_the_others_at_layers'] / 30:.0f}%",
    }


def peers(path: Path) -> list[dict[str, str]]:
    """A line for each peer: tokens per second of one prompt and of 32, and KL to the full fp32 model."""
    document = read_json(path, "rows")
    rows = {(row["peer"], row["rows"]): row for row in document["rows"]}
    lines = []
    for title, (name, scored_as) in _PEERS.items():
        speeds = [
            f"{rows[name, at_once]['tokens_per_sec']['p50']:.0f}" if (name, at_once) in rows else ""
            for at_once in document["settings"]["rows"]
        ]
        score = document["quality"][scored_as]["kl"] if scored_as else None
        lines.append({"title": title, "one": speeds[0], "many": speeds[1], "kl": f"{score['mean']:.3f}" if score else ""})
    return lines


def elastic(folder: Path) -> dict[int, dict[str, str]]:
    """By layers: KL and agreement with the untouched full model, untouched and with the adapter."""
    frames = {w: pq.read_table(folder / w / "rows.parquet").to_pandas() for w in ("untouched", "elastic")}
    found: dict[int, dict[str, str]] = {}
    for layers in sorted(set(frames["elastic"].layers_run), reverse=True):
        line = found.setdefault(int(layers), {})
        for weights, frame in frames.items():
            chosen = frame[frame.layers_run == layers]
            for metric in ("kl", "agreement"):
                line[f"{weights}_{metric}"] = f"{chosen[metric].mean():.3f}"
    return found


def controller(folder: Path) -> dict[str, str]:
    """The share of the oracle's gain over the best static mixture that a controller gets on Alpaca."""
    from depthdial.control.judge.headroom import ORACLE
    from depthdial.report.controller.scores import read_scores

    scores = read_scores(folder)
    assert scores is not None
    return {"agreement": next(gap.text() for gap in scores.scores["agreement"].gaps if gap.name == ORACLE)}


def leaderboard(path: Path) -> dict[str, Any]:
    """Agreement at 0.8 of the full model's time, one row, by family; the time of a step in bf16."""
    board = read_json(path, "rows")
    at = {row["family"]: row["agreement"] for row in board["at_equal_time"] if row["share"] == 0.8 and row["batch"] == 1}
    times = {point["config"]: point["time_1"] for point in board["points"]}
    agreement = {family: str(Interval(*found, n=board["rows"])) for family, found in at.items() if found}
    return {"rows": board["rows"], "agreement": agreement, "bf16_time": f"{times['bf16@30']:.2f}"}


def qwen(folder: Path) -> dict[str, Any]:
    """Agreement of searched routes with each full model on code tasks, Qwen2.5-Coder-1.5B and SmolLM2; tasks that pass."""
    lines = read_lines(folder)
    searched = [line for line in lines if line.text == "code" and line.kind == "searched"]
    found: dict[str, Any] = {"tasks": len(searched[0].values["agreement"]), "qwen": {}, "smollm2": {}}
    for line in searched:
        found[line.model][line.layers] = str(line.interval("agreement"))
    code = [line for line in lines if (line.model, line.text) == ("qwen", "code") and line.kind != "uls"]
    found["passed"] = {line.layers: int(sum(line.values["passed"].values())) for line in code}
    return found


def certified(path: Path) -> dict[str, Any]:
    """The certificates at 2 ROUGE-L points on the data that README names: of static depths, and of a controller's prices."""
    found = {}
    told = read_json(path, "rows")
    for data in ("alpaca", "dolly", "cnn_dailymail"):
        one = told[data]
        static, price = (next(row for row in one[kind] if row["epsilon"] == 0.02) for kind in ("static", "prices"))
        found[data] = {
            "rows": f"{one['n']:,}",
            "layers": static["setting"].rpartition(":")[2],
            "saved": _percent(static["saved"]),
            "price_saved": _percent(price["saved"]),
        }
    return found


def _percent(interval: Mapping[str, float]) -> str:
    return "{:.1f}% [{:.1f}, {:.1f}]".format(*(100 * interval[name] for name in ("mean", "low", "high")))
