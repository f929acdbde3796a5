"""All peers, in the order of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from benchmarks.peers.kinds.dial import LOSSLESS, Dial, Elastic, EngineBF16, EngineDial
from benchmarks.peers.kinds.hf import Eager
from benchmarks.peers.kinds.hf_assisted import AssistedByView, EarlyExit, PromptLookup
from benchmarks.peers.kinds.hf_continuous import ContinuousBatching
from benchmarks.peers.kinds.hf_static import Compiled, Static
from benchmarks.peers.kinds.llama_cpp import LlamaCpp
from benchmarks.peers.kinds.pruned import Pruned
from benchmarks.peers.kinds.quantised import BF16, Int8Dynamic, Int8Weights
from benchmarks.peers.kinds.smaller import Gemma
from benchmarks.peers.kinds.tide import Tide, TideAlways
from benchmarks.peers.peer import REFERENCE, Peer
from depthdial.errors import InputError

CUT = Pruned.name


def roster(depths: Sequence[str] = ()) -> dict[str, Peer]:
    """Fresh peers by name; `depths` are those of the plot of time against quality."""
    peers: list[Peer] = [
        Eager(),
        Static(),
        Compiled(),
        ContinuousBatching(),
        Dial("dial-full", "full", like=REFERENCE, scored_as=REFERENCE),
        EngineDial("engine-full", "full", like=REFERENCE, scored_as=REFERENCE),
        Pruned(),
        Dial("dial-route", None, like=CUT, scored_as=CUT, prompt_depth="route"),
        EngineDial("engine-route", None, like=CUT, scored_as=CUT, prompt_depth="route"),
        AssistedByView(),
        EarlyExit(),
        PromptLookup(),
        Dial("dial-lossless", LOSSLESS, like=REFERENCE, scored_as=REFERENCE),
        EngineDial("engine-lossless", LOSSLESS, like=REFERENCE, scored_as=REFERENCE),
        Tide(),
        TideAlways(),
        LlamaCpp("llama.cpp-f32", "F32", like=REFERENCE),
        LlamaCpp("llama.cpp-f16", "F16"),
        LlamaCpp("llama.cpp-native", "native"),
        BF16(),
        EngineBF16("engine-bf16-full", "full"),
        Int8Weights(),
        Int8Dynamic(),
        Gemma(),
    ]
    for depth in depths:
        peers.append(Dial(f"dial@{depth}", depth))
        peers.append(Elastic(f"elastic@{depth}", depth))
        peers.append(EngineDial(f"engine@{depth}", depth, like=f"dial@{depth}", scored_as=f"dial@{depth}"))
        peers.append(EngineBF16(f"engine-bf16@{depth}", depth))
    return {peer.name: peer for peer in peers}


def chosen(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known names that some names or patterns (`llama*`) mean, in their own order, with the reference; all for none.

    Raises:
        InputError: for a name that means none.
    """
    names = names or ("*",)
    lost = next((name for name in names if not any(fnmatchcase(one, name) for one in known)), None)
    if lost is not None:
        raise InputError(f"There is no peer {lost!r}: give some of {', '.join(known)}.")
    return [one for one in known if one == REFERENCE or any(fnmatchcase(one, name) for name in names)]
