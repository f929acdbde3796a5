"""How long `dd.view` takes and how much memory it takes, by layers run.

The promise: under 5 ms for 30 layers, and no weight copied.
"""

from __future__ import annotations

import statistics

from common import arguments, publish, seconds

import depthdial as dd


def main() -> None:
    options = arguments(__doc__, "view.json", model="smollm2-135m", repeats=50)
    model, _ = dd.load(options.model)
    n_layers = model.config.num_hidden_layers
    own = {id(p) for p in model.parameters()}
    rows = []
    for n_run in (n_layers, n_layers // 2, 1):
        route = dd.Route.parse(f"uls:{n_run}", n_layers)
        dd.view(model, route)  # the first call pays for imports
        times = sorted(seconds(lambda route=route: dd.view(model, route)) for _ in range(options.repeats))
        copied = sum(p.numel() * p.element_size() for p in dd.view(model, route).parameters() if id(p) not in own)
        rows.append(
            {
                "route": route.name,
                "layers run": n_run,
                "median (ms)": 1e3 * statistics.median(times),
                "slowest (ms)": 1e3 * times[-1],
                "weight bytes copied": copied,
            }
        )
    publish(f"dd.view of {options.model} ({n_layers} layers)", rows, options)


if __name__ == "__main__":
    main()
