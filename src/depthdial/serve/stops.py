"""Stop strings in an answer's text: cut out, as OpenAI does, and held back in a stream while one may be coming."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Passes text on up to the first stop string.

    Args:
        keeps_stop: leave the stop string at the end of the text.

    Attributes:
        found: the stop string that ended the text; None so far.

    Example:
        >>> text = StopCutter(["END"])
        >>> [text.add("to be E"), text.add("NDless"), text.end()]
        ['to be ', '', '']
        >>> text.found
        'END'
    """

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        self._stops, self._keeps_stop = tuple(stops), keeps_stop
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """What may be passed on now."""
        if self.found is not None:
            return ""
        self._held += text
        # The first to be whole, as if the text came by the character; of two that end together the longer.
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            _, place, self.found = min(ends)
            passed, self._held = self._held[: place + len(self.found) * self._keeps_stop], ""
            return passed
        n_held = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - n_held
        passed, self._held = self._held[:cut], self._held[cut:]
        return passed

    def end(self) -> str:
        """What was held back, once it is sure that no stop string comes of it."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the text may begin a stop string."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
