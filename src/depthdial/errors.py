"""The one exception that means "the input was wrong", so that the command line can tell it from a bug; and warnings."""

from __future__ import annotations


class InputError(ValueError):
    """Something a user gave cannot be used; the message is one sentence that says what is wrong and what to do.

    Example:
        >>> dd.Route((0, 9), n_layers=6)
        Traceback (most recent call last):
        depthdial.errors.InputError: Layer 9 does not exist: this model has layers 0 to 5.
    """


def one_line(error: BaseException, most: int = 200) -> str:
    """What an error of others says, to be told in a sentence: in one line, of at most so many characters."""
    return " ".join(str(error).split())[:most]


class RouteWarning(UserWarning):
    """A route runs, but on weights that were not trained for it; the message names the nearest one that they were.

    Example:
        >>> warnings.simplefilter("ignore", dd.RouteWarning)
    """


class TokenizerWarning(UserWarning):
    """A tokenizer works, but perhaps not quite as the one that the model was trained with; the message says why.

    Example:
        >>> warnings.simplefilter("error", dd.TokenizerWarning)
    """


class DataWarning(UserWarning):
    """Some rows cannot be measured as asked; the message says how many, and what would measure them."""


class CheckpointWarning(UserWarning):
    """A checkpoint loads, but not everything that it holds is used; the message says what is left out.

    Example:
        >>> warnings.simplefilter("error", dd.CheckpointWarning)
    """
