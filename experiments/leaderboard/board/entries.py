"""The families of the board: for each what runs, at which depths, and by whom it was proposed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from depthdial.routes import Route
from depthdial.routes.families import RouteFamily

DEPTHS = (27, 24, 20, 15, 12)
FEWER_DEPTHS, FEWEST_DEPTHS = (27, 24, 20, 12), (27, 20, 12)
ROUTER_DEPTHS = NARROW_DEPTHS = (24, 20, 15)
BUDGETS = ("90%", "80%", "70%", "60%")
FULL = "full"
TIMES = "times.json"
NEW_TOKENS = 32  # of an answer, at most
BATCH = 16  # rows of one pass
GATE_TOKENS = 3200  # response tokens that the gates of a budget are trained on
RULES = ("ee", "uls", "rls", "unified")

FP32, ELASTIC, SMALLER = "fp32", "elastic", "gemma-3-270m"
BF16, DYNAMIC, TORCHAO = "bf16", "int8-dynamic", "int8-torchao"


@dataclass(frozen=True)
class Config:
    """One point of a family.

    Attributes:
        name: within all of them, such as `greedy@24` or `controller@80%`.
        weights: what it runs on, one of the names above.
        route: what `dd.sweep` takes; None where rows are picked from other configurations'.
        layers: that run for a token; None where that differs by prompt.
    """

    family: str
    name: str
    weights: str
    route: Route | str | None
    layers: int | None


@dataclass(frozen=True)
class Family:
    """A way to spend less time.

    Attributes:
        label: in tables and figures.
        source: the paper, or what it is.
        rule: of static routes, before `:LAYERS`; or the name of a searched family's file.
        with_full: whether the untouched full model is a point of it, so that requests may be shared between it and a depth.
    """

    name: str
    label: str
    source: str
    weights: str = FP32
    rule: str | None = None
    depths: tuple[int, ...] = DEPTHS
    with_full: bool = True

    def configs(self, folder: Path, elastic: Sequence[Route]) -> Iterator[Config]:
        """Its points, but for policies; routes of searched families are read from `folder`."""
        if not self.with_full:
            yield Config(self.name, f"{self.name}@30", self.weights, FULL, 30)
        if self.rule is None:
            return
        known = None if self.rule in RULES else elastic if self.rule == ELASTIC else _searched(folder, self.rule)
        for depth in self.depths:
            name = f"{self.name}@{depth}"
            route: Route | str
            if known is None:
                route = f"{self.rule}:{depth}" + ("@0" if self.rule == "rls" else "")
            else:
                found = next((one for one in known if len(one) == depth), None)
                if found is None:  # not searched yet, or an adapter that was trained for other depths
                    continue
                route = replace(found, name=name)
            yield Config(self.name, name, self.weights, route, depth)


def _searched(folder: Path, name: str) -> Sequence[Route]:
    """The routes of a searched family; none where it is not there yet."""
    path = folder / f"{name}.json"
    return RouteFamily.load(path).routes if path.exists() else ()


STATIC = (
    Family("ee", "early exit", "first layers", rule="ee", depths=FEWEST_DEPTHS),
    Family("uls", "uniform skipping", "arXiv 2410.20022", rule="uls", depths=FEWEST_DEPTHS),
    Family("rls", "random skipping", "arXiv 2410.20022", rule="rls", depths=FEWEST_DEPTHS),
    Family("unified", "unified skipping", "arXiv 2404.06954", rule="unified", depths=FEWEST_DEPTHS),
    Family("block-influence", "block influence", "ShortGPT, arXiv 2403.03853", rule="block-influence", depths=FEWER_DEPTHS),
    Family("angular", "angular distance", "arXiv 2403.17887, without healing", rule="angular", depths=FEWER_DEPTHS),
    Family("greedy", "greedy by KL", "after SLEB, arXiv 2402.09025", rule="greedy-kl"),
    Family("knapspec", "KnapSpec-like", "arXiv 2602.20217, whole layers", rule="knapspec", depths=FEWER_DEPTHS),
)
TASKS = ("alpaca", "dolly", "cnn_dailymail")
# The router's candidates: what is best for one kind of prompts each. Points of no family by themselves.
CANDIDATES = tuple(
    Family(f"for-{task}", f"greedy for {task}", "candidates of the router", rule=f"greedy-kl-{task}", depths=ROUTER_DEPTHS)
    for task in TASKS
    if task != "alpaca"
)
NARROW = (
    Family("bf16", "bf16", "16-bit weights, then greedy", BF16, "greedy-kl", NARROW_DEPTHS, False),
    Family("int8-dynamic", "int8 (torch)", "8-bit weights and inputs", DYNAMIC, with_full=False),
    Family("int8-torchao", "int8 (torchao)", "8-bit weights", TORCHAO, with_full=False),
)
# Prompts and the full route run without the adapter, as where depth is switched by request.
TRAINED = Family("elastic", "elastic adapter", "trained for depth", ELASTIC, ELASTIC)
ROUTER = Family("pudding", "PuDDing-like router", "arXiv 2502.04348")
CONTROLLER = Family("controller", "controller on elastic", "predicted agreement at a price", ELASTIC)
GATES = Family("gates", "token gates", "arXiv 2410.20022, Figure 1b")
OTHER_MODEL = Family("gemma-3-270m", "a smaller model", "Gemma 3 270M", SMALLER, with_full=False)
BOARD = (*STATIC, ROUTER, GATES, TRAINED, CONTROLLER, *NARROW, OTHER_MODEL)
