"""Prometheus metrics: vLLM's names with the prefix `depthdial_` and its label `model_name`, and what depth adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from depthdial.engine.generation import Generation
from depthdial.engine.scoring import Fidelity
from depthdial.engine.tallies import EngineStats
from depthdial.routes import Route

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
_MOST_ROUTES = 64  # with labels of their own: requests may name any number of routes
_OTHER = "other"
_PATHS = frozenset(("/", "/health", "/metrics", "/version", "/tokenize", "/detokenize", "/v1/models", "/v1/completions")) | {
    "/v1/chat/completions"
}


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._labels: set[str] = set()
        self._histograms = {
            name: Histogram(f"depthdial_{name}", text, ["model_name"], buckets=buckets, registry=self.registry)
            for name, text, buckets in (
                ("time_to_first_token_seconds", "From a request to its first token.", _SECONDS),
                ("request_time_per_output_token_seconds", "For each token after the first, by request.", _SECONDS),
                ("e2e_request_latency_seconds", "From a request to its last token.", _SECONDS),
                ("request_queue_time_seconds", "From a request to its row.", _SECONDS),
                ("request_prefill_time_seconds", "Of the prompt's pass.", _SECONDS),
                ("request_decode_time_seconds", "From the first token to the last.", _SECONDS),
                ("request_prompt_tokens", "Tokens of a prompt.", _TOKENS),
                ("request_generation_tokens", "Tokens of an answer.", _TOKENS),
            )
        }
        self._success = self._counter("request_success", "Answers by how they ended.", "finished_reason")
        self._by_route = self._counter("requests_by_route", "Answers by the route that they took.", "route")
        self._by_depth = self._counter("requests_by_depth", "Answers by the depth that was asked for.", "depth")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Tokens that were drafted.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.")
        self._responses = self._counter("http_responses", "Responses by path and status.", "path", "status")
        self._shadow = self._counter("shadow_requests", "Answers for the judgement at full depth.", "depth", "outcome")
        self._shadow_mean = self._gauge(
            "shadow_agreement_mean", "Agreement with the full model, mean over judged answers.", "depth"
        )
        self._shadow_kl = self._gauge("shadow_kl_mean", "KL to the full model in nats, mean over judged answers.", "depth")
        self._certified = self._gauge(
            "certified_loss", "Loss of quality that the controller's certificate allows on average.", "metric"
        )
        self._judged: dict[str, tuple[int, float, float]] = {}

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Add an engine's own numbers, read whenever somebody asks."""
        self.registry.register(_EngineCollector(stats, self._model_name))

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def responded(self, path: str, status: int) -> None:
        self._responses.labels(self._model_name, path if path in _PATHS else _OTHER, str(status)).inc()

    def began(self, prompt_tokens: int) -> None:
        self._observe("request_prompt_tokens", prompt_tokens)

    def first_token(self, seconds: float) -> None:
        self._observe("time_to_first_token_seconds", seconds)

    def answered(self, answer: Generation, depth: str, seconds: float) -> None:
        """One answer is there, so long after it was asked for."""
        self._success.labels(self._model_name, "length" if answer.finish_reason == "length" else "stop").inc()
        route = answer.route.name if isinstance(answer.route, Route) else "token-wise"
        self._by_route.labels(self._model_name, self._label(route)).inc()
        self._by_depth.labels(self._model_name, self._label(depth)).inc()
        self._observe("e2e_request_latency_seconds", seconds)
        self._observe("request_queue_time_seconds", answer.queue_sec)
        self._observe("request_prefill_time_seconds", answer.prefill_sec)
        self._observe("request_decode_time_seconds", answer.decode_sec)
        self._observe("request_generation_tokens", answer.new_tokens)
        if answer.new_tokens > 1:
            self._observe("request_time_per_output_token_seconds", answer.decode_sec / (answer.new_tokens - 1))
        if answer.speculation is not None:
            self._drafted.labels(self._model_name).inc(sum(answer.speculation.drafted))
            self._accepted.labels(self._model_name).inc(sum(answer.speculation.accepted))

    def ended_early(self, n_answers: int, reason: str) -> None:
        """Answers that did not come to their end: `abort` for a client that has gone, or `error`."""
        self._success.labels(self._model_name, reason).inc(n_answers)

    def judged(self, depth: str, found: Fidelity) -> None:
        """An answer was compared with the full model."""
        depth = self._label(depth)
        n, agreement, kl = self._judged.get(depth, (0, 0.0, 0.0))
        n, agreement, kl = n + 1, agreement + found.agreement, kl + found.kl
        self._judged[depth] = n, agreement, kl
        self._shadow.labels(self._model_name, depth, "judged").inc()
        self._shadow_mean.labels(self._model_name, depth).set(agreement / n)
        self._shadow_kl.labels(self._model_name, depth).set(kl / n)

    def not_judged(self, depth: str, outcome: str) -> None:
        """An answer was drawn for judgement and `dropped`, since too many waited, or the judgement `failed`."""
        self._shadow.labels(self._model_name, self._label(depth), outcome).inc()

    def certified(self, metric: str, loss: float) -> None:
        """What the controller's certificate promises."""
        self._certified.labels(self._model_name, metric).set(loss)

    def _label(self, name: str) -> str:
        if name in self._labels or len(self._labels) < _MOST_ROUTES:
            self._labels.add(name)
            return name
        return _OTHER

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].labels(self._model_name).observe(value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"depthdial_{name}", text, ["model_name", *labels], registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"depthdial_{name}", text, ["model_name", *labels], registry=self.registry)


class _EngineCollector:
    """An engine's statistics as metrics."""

    def __init__(self, stats: Callable[[], EngineStats], model_name: str) -> None:
        self._stats, self._model_name = stats, model_name

    def describe(self) -> Iterator[Any]:
        """Nothing beforehand."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        stats = self._stats()
        gauges = {
            "num_requests_running": ("Answers that have a row.", stats.running),
            "num_requests_waiting": ("Answers that wait for a row.", stats.waiting),
            "kv_cache_bytes": ("Of keys and values that are held.", stats.kv_bytes),
            "max_rows": ("Answers that may decode at once.", stats.max_rows),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts that ran.", stats.prompt_tokens),
            "generation_tokens": ("Tokens of answers.", stats.new_tokens),
            "layers_run": ("Layers that ran for tokens of answers after the first.", stats.row_layers_run),
            "layers_skipped": ("Layers that those tokens skipped.", stats.row_layers_skipped),
            "layer_calls_run": ("Calls of layers in decoding steps, each for some rows.", stats.layer_calls_run),
            "layer_calls_skipped": ("Calls that steps at full depth would have had beside them.", stats.layer_calls_skipped),
            "engine_steps": ("Decoding steps.", stats.steps),
            "engine_busy_seconds": ("Time of passes and of choosing tokens.", stats.busy_sec),
            "requests_cancelled": ("Requests that were cancelled.", stats.cancelled),
        }
        for kind, found in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in found.items():
                family = kind(f"depthdial_{name}", text, labels=["model_name"])
                family.add_metric([self._model_name], value)
                yield family
