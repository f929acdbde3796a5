"""The one exception that means "the input was wrong", so that the command line can tell it from a bug."""


class InputError(ValueError):
    """Something a user gave cannot be used; the message is one sentence that says what is wrong and what to do."""
