"""Generation on a route: prompts in, answers out.

Called `generation` and not `generate`, so that importing this package cannot hide the function `depthdial.generate`.
"""
