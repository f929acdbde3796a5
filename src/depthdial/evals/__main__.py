"""`python -m depthdial.evals ..`: the command line of lm-evaluation-harness, which then knows `--model depthdial`.

The harness discovers no plugins, so that somebody has to import the module that registers a model before it looks for it.
"""

from __future__ import annotations

import sys

from depthdial.errors import InputError
from depthdial.evals.harness import require_harness


def main() -> None:
    """Register the model and hand over to the harness; bad input ends with status 2 and one sentence."""
    try:
        require_harness()
        from lm_eval.__main__ import cli_evaluate

        from depthdial.evals import lm_eval as _registers  # noqa: F401

        cli_evaluate()
    except InputError as error:
        print(f"depthdial: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
