"""Settings of the server. Standard library alone, so that the command line can read them."""

from __future__ import annotations

from dataclasses import dataclass

from depthdial.checks import choice, number, whole
from depthdial.errors import InputError

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# As long as nobody asks for others; the server raises a share below its cheapest known route to that route.
USUAL_EFFORTS = ("low=60%", "medium=80%", "high=full")


@dataclass(frozen=True)
class ServeSettings:
    """How the server runs.

    Attributes:
        host: Address to listen on. The default can be reached from this machine alone.
        port: Port to listen on; 0 for a free one.
        depth: Depth of requests that name none: anything that a request may name.
        efforts: Depth of each reasoning_effort; default: low=60%, medium=80%, high=full, where a share below the cheapest
            known route means that route.
        max_rows: Answers that decode at once.
        max_waiting: Answers that may wait for a row. Beyond that, requests get 429.
        max_tokens: Most tokens of keys and values that are held; None for as many as memory holds.
        max_answer_tokens: Longest answer that a request may ask for.
        chunk_tokens: Most tokens of prompts that run between two steps.
        schedule: How rows of several routes run (auto, layer-major or by-route).
        latency: A bench.json, by which auto decides; None for the engine's own steps.
        timeout_sec: Longest time that a request may take.
        keep_alive_sec: Seconds of silence after which a stream sends a comment.
        max_body_bytes: Largest body of a request.
        api_keys: File of API keys, one a line; None for those in DEPTHDIAL_API_KEYS, or no keys.
        shadow: Share of finished answers that are also judged at full depth, such as 1%.
        served_name: The model's id; None for the last part of its name.

    Raises:
        InputError: for a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    depth: str = "full"
    efforts: tuple[str, ...] | None = None
    max_rows: int = 32
    max_waiting: int = 128
    max_tokens: int | None = None
    max_answer_tokens: int = 4096
    chunk_tokens: int = 512
    schedule: str = "auto"
    latency: str | None = None
    timeout_sec: float = 600.0
    keep_alive_sec: float = 15.0
    max_body_bytes: int = 8_000_000
    api_keys: str | None = None
    shadow: str = "0%"
    served_name: str | None = None

    def __post_init__(self) -> None:
        whole("port", self.port, 0, 65535)
        for name in ("max_rows", "max_answer_tokens", "chunk_tokens", "max_body_bytes"):
            whole(name, getattr(self, name), 1)
        whole("max_waiting", self.max_waiting, 0)
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)
        number("timeout_sec", self.timeout_sec, above=0)
        number("keep_alive_sec", self.keep_alive_sec, above=0)
        _ = self.effort_depths, self.shadow_share

    @property
    def effort_depths(self) -> dict[str, str]:
        """The text of a depth by `reasoning_effort`.

        Raises:
            InputError: for an effort that OpenAI does not know, or that has no depth.
        """
        found = {}
        for pair in USUAL_EFFORTS if self.efforts is None else self.efforts:
            effort, _, depth = pair.partition("=")
            choice("reasoning effort", effort.strip(), EFFORTS)
            if not depth.strip():
                raise InputError(f"The effort {pair!r} has no depth: write it as low=60%.")
            found[effort.strip()] = depth.strip()
        return found

    @property
    def shadow_share(self) -> float:
        """The share of answers to judge, from 0 to 1.

        Raises:
            InputError: for what is no share.
        """
        text = self.shadow.strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(f"The shadow share {self.shadow!r} is not between 0% and 100%: write such as 1%.")
        return share
