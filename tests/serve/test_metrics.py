from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from depthdial.engine.scoring import Fidelity
from depthdial.serve.metrics import Metrics
from depthdial.serve.settings import ServeSettings
from tests.serve.served import running, until


def ask(server, **given):
    body = {"prompt": "the cat", "max_tokens": 5, "temperature": 0, "ignore_eos": True, **given}
    answer = server.ask("/v1/completions", body)
    assert answer.status == 200, answer.text
    return answer.json


def test_what_is_counted():
    with running() as server:
        ask(server, depth="mine-3")
        ask(server, depth="mine-3", prompt=["a dog", "the cat"])
        ask(server, n=2, temperature=1)
        assert server.ask("/nothing").status == 404
        text = server.ask("/metrics")
        families = {one.name: one for one in text_string_to_metric_families(text.text)}
        assert text.headers["content-type"].startswith("text/plain")
        assert all(sample.labels["model_name"] == "tiny" for one in families.values() for sample in one.samples)
        metric = server.metric
        assert metric("depthdial_requests_by_route_total", route="mine:3") == 3
        assert metric("depthdial_requests_by_depth_total", depth="full") == 2
        assert metric("depthdial_generation_tokens_total") == 25 and metric("depthdial_prompt_tokens_total") >= 6
        # Three answers of four steps on three of six layers, two on all of them.
        assert metric("depthdial_layers_run_total") == 3 * 4 * 3 + 2 * 4 * 6
        assert metric("depthdial_layers_skipped_total") == 3 * 4 * 3
        assert metric("depthdial_request_success_total", finished_reason="length") == 5
        assert metric("depthdial_time_to_first_token_seconds_count") == 3
        assert metric("depthdial_e2e_request_latency_seconds_count") == 5
        assert metric("depthdial_num_requests_running") == 0
        assert metric("depthdial_http_responses_total", path="other", status="404") == 1


def test_the_shadow_judges_answers_at_full_depth():
    with running(settings=ServeSettings(shadow="100%")) as server:
        ask(server)
        ask(server, depth="mine-3", n=2, temperature=1, seed=1)
        until(lambda: server.metric("depthdial_shadow_requests_total", outcome="judged") == 3)
        metric = server.metric
        assert metric("depthdial_shadow_agreement_mean", depth="full") == 1
        assert 0 < metric("depthdial_shadow_agreement_mean", depth="mine-3") < 1
        assert metric("depthdial_shadow_kl_mean", depth="mine-3") > 0


def test_labels_are_bounded():
    """A client may name any number of routes; Prometheus keeps a series for each label."""
    metrics = Metrics("tiny")
    for n in range(200):
        metrics.judged(f"depth-{n}", Fidelity(0.5, 0.1, 4))
    text = metrics.render().decode()
    assert text.count("depthdial_shadow_agreement_mean{") == 65 and 'depth="other"' in text


def test_means_and_promises():
    metrics = Metrics("tiny")
    for agreement in (1.0, 0.5):
        metrics.judged("controller", Fidelity(agreement, 0.2, 4))
    metrics.not_judged("controller", "dropped")
    metrics.certified("agreement", 0.05)
    found = {
        (sample.name, sample.labels.get("outcome")): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    assert found["depthdial_shadow_agreement_mean", None] == pytest.approx(0.75)
    assert found["depthdial_shadow_requests_total", "dropped"] == 1
    assert found["depthdial_certified_loss", None] == 0.05
