"""Depthdial: run only a chosen subset of a decoder-only model's layers, and know what that costs.

    import depthdial as dd

    model, tokenizer = dd.load("smollm2-135m")
    route = dd.Route.parse("uls:50%", n_layers=30)
    shallow = dd.view(model, route)

Names are imported when they are first used, so that importing the package loads neither torch nor transformers.
"""

from lazy_loader import attach_stub

from depthdial import moved

__version__ = "0.1.0"
# Public names and their homes stand in __init__.pyi, for readers, type checkers and this.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

moved.install()
