"""The one exception that means "the input was wrong", so that the command line can tell it from a bug; and a warning."""


class InputError(ValueError):
    """Something a user gave cannot be used; the message is one sentence that says what is wrong and what to do."""


class RouteWarning(UserWarning):
    """A route runs, but on weights that were not trained for it; the message names the nearest one that they were."""
