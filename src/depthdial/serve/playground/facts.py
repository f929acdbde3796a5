"""The depths that the playground offers, and what else its page has to know of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from depthdial.engine.lossless import NAME as LOSSLESS
from depthdial.errors import InputError
from depthdial.serve.depths import CONTROLLER, FULL, Chosen, Depths

_ABOUT = {
    FULL: "the reference",
    LOSSLESS: "the full model's answer, drafted on fewer layers",
    CONTROLLER: "reads the prompt and picks",
}


@dataclass(frozen=True)
class OfferedDepth:
    """A depth of the page.

    Attributes:
        depth: what the page sends as the field `depth`.
        title: what the reader sees.
        layers: the layers that run, from 0; None where only the answer tells.
        about: a few words on it.
    """

    depth: str
    title: str
    layers: tuple[int, ...] | None = None
    about: str = ""


@dataclass(frozen=True)
class PageFacts:
    """What the page has to know.

    Attributes:
        model: the model id that the page sends.
        n_layers: of the whole model.
        has_chat: whether prompts go as chat messages; else as plain text.
        prompt_depth: the layers that prompts run: `full` or `route`.
        dial: the stops of the dial, from few layers to all.
        named: depths to choose by name, the full model first.
    """

    model: str
    n_layers: int
    has_chat: bool
    prompt_depth: str
    dial: tuple[OfferedDepth, ...]
    named: tuple[OfferedDepth, ...]

    @classmethod
    def of(cls, depths: Depths, tokenizer: Any) -> PageFacts:
        """Of what a server's requests may name.

        The dial stops at the routes that a count of layers chooses, from two layers to all; depths that are not on the dial
        are named.

        Example:
            >>> from depthdial.serve.depths import Depths
            >>> family = dd.RouteFamily("mine", 6, (dd.Route((0, 5), 6), dd.Route((0, 1, 3, 5), 6)))
            >>> facts = PageFacts.of(Depths(model, "tiny", families=[family]), tokenizer)
            >>> [stop.depth for stop in facts.dial], facts.named[0].title
            (['2', '4', 'full'], 'Full model')
        """
        full = _named(depths.read(FULL))
        dial = {stop.layers: stop for stop in reversed([*_counted(depths), full])}
        others = [chosen for chosen in depths.listed() if chosen.label == LOSSLESS or _layers(chosen) not in dial]
        return cls(
            depths.name,
            depths.n_layers,
            bool(getattr(tokenizer, "chat_template", None)),
            depths.choose(None).prompt_depth,
            (*reversed(dial.values()),),
            (full, *map(_named, others)),
        )


def _counted(depths: Depths) -> Iterator[OfferedDepth]:
    """The depths that are counts of layers; the first of those that choose the same route is the one to keep."""
    for count in range(2, depths.n_layers):
        try:
            layers = _layers(depths.read(str(count)))
        except InputError:  # no route is so short
            continue
        if layers is not None:
            yield OfferedDepth(str(count), f"{len(layers)} of {depths.n_layers} layers", layers)


def _named(chosen: Chosen) -> OfferedDepth:
    title = "Full model" if chosen.label == FULL else chosen.label.capitalize() if chosen.label in _ABOUT else chosen.label
    # Drafts and checks of a lossless answer run different layers.
    layers = None if chosen.label == LOSSLESS else _layers(chosen)
    return OfferedDepth(chosen.label, title, layers, _ABOUT.get(chosen.label, ""))


def _layers(chosen: Chosen) -> tuple[int, ...] | None:
    return None if chosen.route is None else chosen.route.layers
