"""The playground: its files, and the page itself in a real browser against the real server."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from transformers import LlamaForCausalLM

import depthdial as dd
from depthdial.errors import RouteWarning
from depthdial.routes import Route
from depthdial.serve.depths import Depths
from depthdial.serve.playground import FACTS_PATH, PAGE, playground_router
from depthdial.serve.playground.facts import PageFacts
from depthdial.serve.service import Served
from tests.conftest import make_llama
from tests.serve.chrome import BINARY, CTRL, SHIFT, Page, chrome
from tests.serve.served import chat_tokenizer, running

FAMILY = dd.RouteFamily("mine", 6, (Route((0, 5), 6), Route((0, 1, 3, 5), 6)))
needs_browser = pytest.mark.skipif(BINARY is None, reason="No Chromium is on the PATH: install one to test the page in it.")


def family_depths(model: Any) -> Depths:
    return Depths(model, "tiny", families=[FAMILY])


@pytest.fixture
def client(model, tokenizer) -> TestClient:
    app = FastAPI()
    app.include_router(playground_router(lambda: PageFacts.of(family_depths(model), tokenizer)))
    return TestClient(app)


def test_every_file_is_served_with_a_policy_that_lets_nothing_else_in(client: TestClient) -> None:
    for path in ("/", *(f"/playground/{path.name}" for path in PAGE.iterdir() if path.name != "index.html")):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/playground/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/playground/..%2Ffacts.py").status_code == 404


@pytest.mark.parametrize("file", sorted(path.name for path in PAGE.iterdir()))
def test_no_file_names_an_outside_address_or_needs_what_the_policy_forbids(file: str) -> None:
    text = (PAGE / file).read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//[a-z0-9-]+\.[a-z]|@import|url\(", text)
    assert not re.findall(r"\bon[a-z]+=\"|\bstyle=\"|<script>|<style>|javascript:|\beval\(|innerHTML|Storage\b|cookie", text)


def test_files_that_the_page_names_exist() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        named = re.findall(r'(?:href|src)="(playground/[^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert all((PAGE / name.removeprefix("playground/")).is_file() for name in named)


def test_the_dial_stops_at_the_routes_that_counts_choose(client: TestClient, model, tokenizer) -> None:
    facts = client.get(FACTS_PATH).json()
    assert [(stop["depth"], stop["layers"]) for stop in facts["dial"]] == [
        ("2", [0, 5]),
        ("4", [0, 1, 3, 5]),
        ("full", [0, 1, 2, 3, 4, 5]),
    ]
    assert facts["model"] == "tiny" and facts["n_layers"] == 6 and not facts["has_chat"]
    names = [depth["depth"] for depth in facts["named"]]
    assert names[0] == "full" and "lossless" in names and "mine-2" not in names  # that one is on the dial


# The page in a browser


def endless(tokenizer: Any = None) -> Served:
    """A tiny model that never ends an answer by itself."""
    config = make_llama().config
    config.max_position_embeddings = 8192
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[config.eos_token_id] = 0
    return Served.of(model, tokenizer or chat_tokenizer(), "tiny", families=[FAMILY])


@contextmanager
def serving(source: Any = None, keys: Sequence[str] = ()) -> Iterator[str]:
    """The address of the real server."""
    with running(source or endless(), keys=keys) as server:
        yield f"{server.url}/"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    with chrome(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Page:
    """The page, once it knows its server."""
    browser.look()
    browser.problems.clear()
    browser.requests.clear()
    browser.go(address)
    browser.wait("!document.querySelector('#controls').disabled")
    return browser


def set_tokens(page: Page, count: int) -> None:
    page.js(f"document.querySelector('#max-tokens').value = {count}")


def cards(page: Page) -> list[dict[str, Any]]:
    """Every card as a reader sees it."""
    return page.js(
        """[...document.querySelectorAll('.answer')].map(card => ({
            depth: card.dataset.depth,
            title: card.querySelector('h3').textContent,
            lit: [...card.querySelectorAll('.map i')].flatMap((cell, place) => cell.className === 'ran' ? [place] : []),
            map: card.querySelector('.map').getAttribute('aria-label'),
            facts: Object.fromEntries(
                [...card.querySelectorAll('dt')].map(dt => [dt.textContent, dt.nextSibling.textContent])),
            text: card.querySelector('.text').textContent,
            busy: card.querySelector('.text').ariaBusy === 'true',
            marks: [...card.querySelectorAll('mark')].map(mark => mark.textContent),
            note: card.querySelector('.note').textContent,
            error: card.querySelector('.error').hidden ? '' : card.querySelector('.error').textContent,
        }))"""
    )


def finished(page: Page) -> list[dict[str, Any]]:
    page.wait("/finished|stopped|failed/.test(document.querySelector('#status').textContent)")
    return cards(page)


@pytest.mark.slow
@needs_browser
def test_a_prompt_is_answered_at_two_depths_side_by_side(page: Page, address: str) -> None:
    set_tokens(page, 12)
    page.write("the cat sat on", "#prompt")
    page.press("Enter", CTRL)
    full, dialled = finished(page)
    assert (full["title"], dialled["title"]) == ("Full model", "4 of 6 layers")
    assert full["lit"] == [0, 1, 2, 3, 4, 5] and full["map"] == "All 6 layers ran."
    assert dialled["lit"] == [0, 1, 3, 5] and dialled["map"] == "Layers 0–1, 3, 5 ran: 4 of 6."
    for card in (full, dialled):
        assert card["facts"]["Tokens"] == "12" and not card["busy"] and not card["error"]
        assert re.fullmatch(r"\d+ ms|\d+\.\d s", card["facts"]["First token"])
        assert float(card["facts"]["Tokens/s"]) > 0
    assert full["facts"]["Layers run"] == "6 of 6" and dialled["facts"]["Layers run"] == "4 of 6"
    # Marks are the words that the full model's answer lacks, and nothing is lost to them.
    assert not full["marks"] and dialled["marks"] and "First difference at word" in dialled["note"]
    assert dialled["text"].split() != full["text"].split() and all(mark in dialled["text"] for mark in dialled["marks"])
    assert not page.problems and page.requests
    assert all(one.startswith((address, "data:,")) for one in page.requests)


@pytest.mark.slow
@needs_browser
def test_a_lossless_answer_has_the_full_models_words(page: Page) -> None:
    set_tokens(page, 12)
    page.click("input[value=lossless]")
    page.write("the cat sat on", "#prompt")
    page.click("#run")
    full, _, lossless = finished(page)
    assert lossless["depth"] == "lossless" and lossless["text"] == full["text"]
    assert not lossless["marks"] and "The words are the full model's." in lossless["note"]


@pytest.mark.slow
@needs_browser
def test_escape_stops_what_runs_on_the_server_too(page: Page, address: str) -> None:
    set_tokens(page, 4000)
    page.write("the cat", "#prompt")
    page.press("Enter", CTRL)
    page.wait("[...document.querySelectorAll('.text')].every(text => text.textContent.length > 20)")
    assert all(card["busy"] for card in cards(page))
    page.look(360, 740)  # where Stop stays in sight
    assert page.js("document.querySelector('#stop').getBoundingClientRect().bottom <= innerHeight")
    page.press("Escape")
    stopped = finished(page)
    assert page.js("document.querySelector('#status').textContent").startswith("2 stopped.")
    assert all("Stopped before its end." in card["note"] and not card["busy"] and not card["error"] for card in stopped)
    assert all(card["facts"]["Tokens"].startswith("≈") for card in stopped)
    assert [card["map"] for card in stopped] == ["All 6 layers ran.", "Layers 0–1, 3, 5 ran: 4 of 6."]
    running = "fetch('metrics').then(answer => answer.text()).then(text => /num_requests_running\\S* 0\\.0/.test(text))"
    page.wait(running, timeout_sec=10)
    before = page.js("document.querySelector('.text').textContent")
    set_tokens(page, 5)
    page.press("Enter", CTRL)  # another run works
    page.wait("document.querySelector('#status').textContent.startsWith('2 finished')")
    assert page.js("document.querySelector('.text').textContent") != before


@pytest.mark.slow
@needs_browser
def test_one_after_the_other_runs_one_at_a_time(page: Page) -> None:
    set_tokens(page, 4000)
    page.click("#in-turn")
    page.write("the cat", "#prompt")
    page.click("#run")
    page.wait("document.querySelector('.text').textContent.length > 20")
    first, second = cards(page)
    assert first["busy"] and not second["busy"] and not second["text"]
    page.click("#stop")
    finished(page)
    set_tokens(page, 4)
    page.click("#run")
    page.wait("document.querySelector('#status').textContent === '2 finished.'")


@pytest.mark.slow
@needs_browser
def test_arrow_keys_turn_the_dial_and_its_map(page: Page) -> None:
    page.js("document.querySelector('#dial').focus()")
    told = "document.querySelector('#dial').getAttribute('aria-valuetext')"
    lit = "[...document.querySelectorAll('#dial-map i')].map(cell => cell.className === 'ran' ? '1' : '0').join('')"
    assert (page.js(told), page.js(lit)) == ("4 of 6 layers", "110101")
    page.press("ArrowLeft")
    assert (page.js(told), page.js(lit)) == ("2 of 6 layers", "100001")
    assert [card["depth"] for card in cards(page)] == ["full", "2"]
    page.click("#keep")
    page.js("document.querySelector('#dial').focus()")
    page.press("End")
    assert (page.js(told), page.js(lit)) == ("6 of 6 layers", "111111")
    assert [card["depth"] for card in cards(page)] == ["full", "2"]
    page.press("ArrowLeft")
    assert [card["depth"] for card in cards(page)] == ["full", "4", "2"]
    page.click("[aria-label='Remove 2 of 6 layers']")
    assert [card["depth"] for card in cards(page)] == ["full", "4"]
    assert page.js("document.activeElement.id") == "run"


@pytest.mark.slow
@needs_browser
def test_errors_are_one_sentence_where_they_belong(page: Page) -> None:
    page.press("Enter", CTRL)
    assert page.js("document.querySelector('#error').textContent") == "The prompt is empty: write something to answer."
    assert page.js("document.activeElement.id") == "prompt"
    set_tokens(page, 3)
    page.write("uls:99", "#other")
    page.press("Enter")
    page.write("the cat", "#prompt")
    page.press("Enter", CTRL)
    *good, bad = finished(page)
    assert all(card["facts"]["Tokens"] == "3" and not card["error"] for card in good)
    assert bad["depth"] == "uls:99" and "99" in bad["error"] and bad["error"].count(". ") == 0
    assert page.js("document.querySelector('#error').hidden")


@pytest.mark.slow
@needs_browser
def test_it_waits_for_a_model_that_loads_and_sends_plain_prompts_without_a_chat_template(browser: Page, tokenizer) -> None:
    may_load = threading.Event()

    def load() -> Served:
        may_load.wait(60)
        return endless(tokenizer)

    with serving(load) as address:
        try:
            browser.go(address)
            browser.wait("document.querySelector('#model').textContent === 'The model is loading …'")
            assert browser.js("document.querySelector('#controls').disabled")
        finally:
            may_load.set()
        browser.wait("!document.querySelector('#controls').disabled")
        assert browser.js("document.querySelector('#system').hidden")
        browser.requests.clear()
        set_tokens(browser, 5)
        browser.write("the cat", "#prompt")
        browser.press("Enter", CTRL)
        assert [card["facts"]["Tokens"] for card in finished(browser)] == ["5", "5"]
        assert browser.requests == [f"{address}v1/completions"] * 2


@pytest.mark.slow
@needs_browser
def test_a_server_that_is_gone_is_said_once(browser: Page) -> None:
    with serving() as address:
        browser.go(address)
        browser.wait("!document.querySelector('#controls').disabled")
    browser.write("the cat", "#prompt")
    browser.press("Enter", CTRL)
    told = finished(browser)
    assert browser.js("document.querySelector('#error').textContent").startswith("The server does not answer: check that")
    assert not any(card["error"] for card in told)


@pytest.mark.slow
@needs_browser
def test_a_key_is_asked_for_and_kept_in_memory_alone(browser: Page) -> None:
    with serving(keys=["right-key"]) as address:
        # A browser asks for the key when it opens the page; the test answers in its place, and then takes the key away.
        open_key = "Basic OnJpZ2h0LWtleQ=="  # ":right-key"
        browser.call("Network.setExtraHTTPHeaders", headers={"Authorization": open_key})
        browser.go(address)
        browser.wait("!document.querySelector('#controls').disabled")
        browser.call("Network.setExtraHTTPHeaders", headers={})
        browser.write("the cat", "#prompt")
        browser.press("Enter", CTRL)
        finished(browser)
        assert browser.js("document.querySelector('#error').textContent").startswith("The API key is missing or wrong")
        browser.wait("!document.querySelector('#key-form').hidden && document.activeElement.id === 'key'")
        for key, told in (("wrong-key", "Not connected"), ("right-key", "tiny · 6 layers · prompts run every layer")):
            browser.write(key, "#key")
            browser.press("Enter")
            browser.wait(f"document.querySelector('#model').textContent === {told!r}")
        assert browser.js("document.querySelector('#key-form').hidden")
        set_tokens(browser, 3)
        browser.press("Enter", CTRL)
        browser.wait("document.querySelector('#status').textContent.startsWith('2 finished')")
        assert browser.js("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.slow
@needs_browser
def test_everything_has_a_name_and_the_focus_goes_down_the_page(page: Page) -> None:
    page.js("document.querySelector('details').open = true")
    assert all(name for role, name in page.names() if role not in ("RootWebArea", "generic"))
    seen = []
    page.js("document.querySelector('#prompt').focus()")
    for _ in range(12):
        seen.append(page.js("document.activeElement.id || document.activeElement.value || document.activeElement.tagName"))
        page.press("Tab")
    expected = ["prompt", "dial", "keep", "full", "lossless", "other", "add", "SUMMARY"]
    assert [one for one in seen if one in expected] == expected
    page.press("Tab", SHIFT)
    live = "[...document.querySelectorAll('[role=status], [role=alert], [aria-live]')].length"
    assert page.js(live) >= 3


CONTRASTS = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return [...document.body.querySelectorAll('*')].flatMap(element => {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest('noscript, .unseen')) return [];
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    return [[(a + .05) / (b + .05), element.tagName + ' ' + element.textContent.slice(0, 40)]];
  });
})()"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes_on_a_narrow_screen_and_without_motion(page: Page, scheme: str) -> None:
    page.look(360, 740, scheme, "reduce")
    set_tokens(page, 40)
    page.write("the cat sat on", "#prompt")
    page.click("#keep")
    page.write("uls:99", "#other")
    page.click("#add")
    page.press("Enter", CTRL)
    finished(page)
    contrasts = page.js(CONTRASTS)
    assert len(contrasts) > 30 and min(contrasts)[0] >= 4.5, min(contrasts)
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert page.js("getComputedStyle(document.body).backgroundColor") == {"light": "rgb(255, 255, 255)"}.get(
        scheme, "rgb(24, 24, 27)"
    )
    page.js("document.querySelector('.text').ariaBusy = 'true'")
    assert page.js("getComputedStyle(document.querySelector('.text'), '::after').animationName") == "none"


@pytest.mark.slow
@needs_browser
def test_words_are_compared_as_by_a_table(page: Page) -> None:
    """The marks of the page's own code, against Python's longest common subsequence."""
    import random

    draw = random.Random(0)
    for _ in range(60):
        one, other = ([draw.choice("abcd") for _ in range(draw.randrange(12))] for _ in range(2))
        found = page.js(f"import('/playground/words.js').then(m => m.compareWords({' '.join(one)!r}, {' '.join(other)!r}))")
        kept = longest(tuple(one), tuple(other))
        assert found["n_different"] == len(one) - kept and found["n_missing"] == len(other) - kept
        assert "".join(piece["text"] for piece in found["pieces"]) == " ".join(one)
        marked = " ".join(piece["text"] for piece in found["pieces"] if piece["differs"]).split()
        assert len(marked) == found["n_different"]


def longest(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    best = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            best[i + 1][j + 1] = best[i][j] + 1 if a == b else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


@pytest.mark.slow
def test_a_controller_is_offered_and_its_layers_come_with_the_answer(model, tokenizer, many) -> None:
    controller = dd.SequenceController.fit(model, tokenizer, task=many, routes=["uls:50%", "full"], response_tokens=2)
    facts = PageFacts.of(Depths(model, "tiny", families=[FAMILY], controller=controller), tokenizer)
    offered = {depth.depth: depth for depth in facts.named}
    assert offered["controller"].layers is None and offered["controller"].title == "Controller"


def test_without_known_routes_the_dial_skips_layers_uniformly(model, tokenizer) -> None:
    with pytest.warns(RouteWarning):
        facts = PageFacts.of(Depths(model, "tiny"), tokenizer)
    assert [stop.depth for stop in facts.dial] == ["2", "3", "4", "5", "full"]
    assert facts.dial[1].layers == Route.parse("unified:3", 6).layers


def test_only_files_of_the_page_are_in_its_folder() -> None:
    assert {path.suffix for path in Path(PAGE).iterdir()} == {".html", ".css", ".js"}
