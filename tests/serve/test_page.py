"""The page in a real browser: what it shows is what the server computes, and nothing it is told is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import LOW_CONTRAST, chromium, running

from conftest import MakeModel
from moembed.cli import main
from moembed.embedder import Embedder
from moembed.encoding import View, truncate
from moembed.families.flat import FlatMoE
from moembed.search.index import Index
from moembed.token_experts import token_experts
from small_server import wait_until_ready
from tagged_models import tagged_model

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from moembed.serve.app import create_app
from moembed.serve.metrics import Metrics
from moembed.serve.routes.page import MOST_AT_ONCE, POLICY, page_files
from moembed.serve.served import ServedModel
from moembed.serve.settings import ServeSettings

KEY = "the-right-key"
XSS = [
    "<img src=x onerror=\"window.hacked='img'\"> the owl hunts voles",
    "<script>window.hacked = 'script'</script> moles eat worms",
    "</p></li><svg onload=\"window.hacked='svg'\"> the meadow is wide",
    "javascript:alert(1) &lt;b&gt; &amp; ${1+1} {{7*7}}",
]
DOCUMENTS = ["the mole digs tunnels under the meadow", "an owl hunts voles at night", *XSS]
SECTIONS = ["similarity", "search", "experts", "sizes", "live"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Embedder:
    made = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4), seed=3)
    made.dims = (16, 4)
    return made


@pytest.fixture(scope="module")
def index(model: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("page")
    model.save_pretrained(folder / "model")
    rows = [
        {"_id": f"<i>{n}</i>", "text": text, "lang": "<b>en</b>", "number": n}
        for n, text in enumerate(DOCUMENTS)
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", folder / "model", "--out", folder / "index", "--dtype", "float32")
    assert main(["index", *map(str, (folder / "documents.jsonl", *options))]) == 0
    return Index.open(folder / "index")


def app_of(model: Embedder, index: Index | None = None, **settings: Any) -> Any:
    metrics = Metrics()
    served = ServedModel("mole <b>model</b>", model, observer=metrics)
    return create_app(ServeSettings(model="runs/mole", **settings), served, index, metrics=metrics)


@pytest.fixture(scope="module")
def address(model: Embedder, index: Index) -> Iterator[str]:
    with running(app_of(model, index)) as found:
        yield found


@contextmanager
def watched(context: Any) -> Iterator[Any]:
    """A fresh page; what the browser complains of fails the test, but for what the test expects."""
    context.set_default_timeout(5_000)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda told: told.type in ("error", "warning") and page.complaints.append(told.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    hacked = page.evaluate("localStorage.clear(), window.hacked")
    page.close()
    assert not page.complaints
    assert hacked is None


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    return browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    with watched(context) as found:
        yield found


def visit(page: Any, address: str, section: str) -> Any:
    page.goto(f"{address}#{section}")
    panel = page.locator(f"#{section}")
    panel.locator(":scope > *").first.wait_for()
    return panel


def run(panel: Any) -> str:
    """Send the form of a section, wait for its result, and give the sentence about it."""
    panel.locator("button.main").click()
    panel.locator(".status", has_text="there and back").wait_for()
    return str(panel.locator(".status").inner_text())


# ---- the sections ----------------------------------------------------------------------------------------


def test_the_map_shows_the_cosines_of_the_model(page: Any, address: str, model: Embedder) -> None:
    panel = visit(page, address, "similarity")
    texts = DOCUMENTS[:2] + XSS[:1]
    panel.locator("textarea").fill("\n".join(texts) + "\n\n")
    panel.locator("select").select_option("query")
    run(panel)
    shown = [float(cell) for cell in panel.locator(".cell").all_inner_texts()]
    vectors = model.vectors(texts, role="query").array
    np.testing.assert_allclose(np.reshape(shown, (3, 3)), vectors @ vectors.T, atol=0.0051)
    assert panel.locator("tbody th").last.text_content() == f"3. {XSS[0]}"
    assert panel.locator("img, script").count() == 0


def test_search_marks_the_shared_words_and_tells_the_time(page: Any, address: str) -> None:
    panel = visit(page, address, "search")
    panel.get_by_label("Question").fill("What does an OWL hunt?")
    panel.get_by_label("Documents to show").fill("6")
    told = run(panel)
    assert re.fullmatch(r"6 hits: [\d.]+ ms to embed, [\d.]+ ms to search, [\d.]+ ms there and back\.", told)
    assert set(panel.locator("mark").all_text_contents()) == {"owl"}
    shown = set(panel.locator(".hit p").all_text_contents())
    assert shown == set(DOCUMENTS)  # every document is text, markup and all
    assert panel.locator("img, script, svg, b, i").count() == 0
    assert "<i>0</i>" in " ".join(panel.locator("dd").all_text_contents())


def test_tokens_stand_above_the_experts_that_they_chose(page: Any, address: str, model: Embedder) -> None:
    panel = visit(page, address, "experts")
    text = "the owl <b>hunts</b> voles"
    panel.locator("textarea").fill(text)
    panel.locator("select").select_option("query")
    run(panel)
    found = token_experts(model, text, role="query")
    assert panel.locator(".token:not(.layers) .piece").all_text_contents() == found.pieces
    columns = panel.locator(".token:not(.layers)").evaluate_all(
        "all => all.map(one => [...one.querySelectorAll('.experts')].map(cell =>"
        " [...cell.children].map(expert => Number(expert.textContent))))"
    )
    assert columns == [[layer.experts[token] for layer in found.layers] for token in range(len(columns))]
    panel.locator(".experts").first.hover()
    weights = ", ".join(
        f"expert {expert} ({weight:.2f})"
        for expert, weight in zip(found.layers[0].experts[0], found.layers[0].weights[0], strict=True)
    )
    assert panel.locator(".readout").inner_text().split("\n") == ["[CLS]", f"layer 1: {weights}"]
    share = panel.locator("button.expert").first
    share.click()
    count = int(str(share.get_attribute("title")).split()[2])
    assert panel.locator(".experts.same").count() == count > 0


def test_a_tag_is_chosen_where_experts_hang_on_it(page: Any, make_model: MakeModel) -> None:
    tagged = tagged_model(make_model(prompts={}).parts(), tags=["de", "en", "fr"])
    with running(app_of(tagged)) as address:
        panel = visit(page, address, "experts")
        panel.locator("textarea").fill("the owl")
        run(panel)  # of the first tag
        chosen = panel.locator(".token:not(.layers) .expert")
        assert chosen.all_text_contents() == ["0"] * 8
        panel.get_by_label("Tag").select_option("fr")
        run(panel)
        assert chosen.all_text_contents() == ["2"] * 8
        panel = visit(page, address, "similarity")
        panel.locator("textarea").fill("the owl\nmoles")
        panel.get_by_label("Tag").select_option("en")
        run(panel)
        shown = [float(cell) for cell in panel.locator(".cell").all_inner_texts()]
        vectors = tagged.encode(["the owl", "moles"], tag="en")
        np.testing.assert_allclose(np.reshape(shown, (2, 2)), vectors @ vectors.T, atol=0.0051)


def test_two_sizes_are_ranked_as_the_model_ranks_them(page: Any, address: str, model: Embedder) -> None:
    panel = visit(page, address, "sizes")
    panel.get_by_label("Query").fill("the owl hunts")
    panel.get_by_label("Texts").fill("\n".join(DOCUMENTS))
    run(panel)
    for ranking, dim in zip(panel.locator(".ranking").all(), (16, 4), strict=True):
        documents = model.vectors(DOCUMENTS, role="document", view=View(dim=dim)).array
        scores = documents @ model.encode_query("the owl hunts", dim=dim)
        order = np.argsort(-scores, kind="stable")
        assert ranking.locator(".ranked").all_text_contents() == [DOCUMENTS[n] for n in order]
        shown = [float(score) for score in ranking.locator(".score").all_inner_texts()]
        np.testing.assert_allclose(shown, scores[order], atol=0.00051)
        assert ranking.locator("h3").inner_text() == f"{dim} dimensions"
    assert panel.locator(".links path").count() == len(DOCUMENTS)
    assert page.evaluate(
        "async () => (await import('./page/sizes.js')).kendall([0, 1, 2, 3], [1, 0, 3, 2])"
    ) == pytest.approx(1 / 3)


def test_an_index_is_ranked_at_two_sizes(page: Any, address: str, model: Embedder, index: Index) -> None:
    panel = visit(page, address, "sizes")
    panel.get_by_label("Query").fill("an owl")
    told = run(panel)
    assert told.startswith(f"{len(DOCUMENTS)} documents, ")
    vectors = np.concatenate(list(index.vectors()))
    for ranking, dim in zip(panel.locator(".ranking").all(), (16, 4), strict=True):
        scores = truncate(vectors, dim) @ model.encode_query("an owl", dim=dim)
        order = [DOCUMENTS[n] for n in np.argsort(-scores, kind="stable")]
        assert ranking.locator(".ranked").all_text_contents() == order


def test_a_filter_and_words_go_to_the_search(page: Any, address: str) -> None:
    panel = visit(page, address, "search")
    panel.get_by_label("Question").fill("owl")
    panel.get_by_label("Only those where").fill("number >= 1 and number < 4")
    panel.get_by_label("Words (BM25)").check()
    assert run(panel).startswith("3 hits: ")
    assert "number (" in panel.locator(".hint").inner_text()
    panel.get_by_label("Only those where").fill("nonsense = 1")
    panel.locator("button.main").click()
    panel.locator(".problem", has_text="nonsense").wait_for()
    assert page.complaints == [
        "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]
    page.complaints.clear()


def test_live_metrics_follow_what_is_asked(browser: Any, address: str) -> None:
    with browser.new_context() as context, watched(context) as page:
        page.clock.install()  # the two seconds between readings are not waited for
        panel = visit(page, address, "live")
        tokens = panel.locator(".tile", has_text="Tokens read").locator("dd")
        page.clock.run_for(2500)
        tokens.get_by_text(re.compile(r"^\d")).wait_for()  # two readings make a rate
        page.evaluate(
            "fetch('v1/embeddings', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            " body: JSON.stringify({input: Array(50).fill('the owl hunts voles')})}).then(a => a.ok)"
        )
        page.clock.run_for(2500)
        tokens.get_by_text(re.compile(r"^[1-9]")).wait_for()
        assert panel.locator(".columns").count() == 2
        panel.get_by_role("button", name="Hold").click()
        assert panel.get_by_role("button", name="Go on").get_attribute("aria-pressed") == "true"


def test_metrics_are_read_as_prometheus_reads_them(page: Any, address: str) -> None:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    registry = CollectorRegistry()
    counter = Counter("odd", "Odd labels.", ("label",), registry=registry)
    for label in ('a "b" \\ c', "two\nlines", "{x=1}"):
        counter.labels(label).inc(2.5)
    histogram = Histogram("wait", "Waits.", buckets=(1, 2, 4), registry=registry)
    before = generate_latest(registry).decode()
    for value in (0.5, 1.5, 1.5, 3, 9):
        histogram.observe(value)
    after = generate_latest(registry).decode()
    visit(page, address, "similarity")
    found = page.evaluate(
        """async ([before, after]) => {
            const { parse, buckets, quantile } = await import("./page/prometheus.js");
            const [past, now] = [before, after].map((text) => buckets(parse(text), "wait"));
            const all = [...parse(after)].flatMap(([name, samples]) =>
              samples.map(({ labels, value }) => [name, labels, value]));
            return [all, [0.1, 0.4, 0.6, 0.7, 0.99].map((q) => quantile(past, now, q))];
        }""",
        [before, after],
    )
    families = text_string_to_metric_families(after)
    expected = [[s.name, s.labels, s.value] for family in families for s in family.samples]
    assert sorted(map(str, found[0])) == sorted(
        str([n, v, int(x) if x == int(x) else x]) for n, v, x in expected
    )
    assert found[1] == pytest.approx([0.5, 1.5, 2, 3, 4])


# ---- what can go wrong -----------------------------------------------------------------------------------


def test_a_key_is_asked_for_once_and_kept_in_this_tab(page: Any, model: Embedder) -> None:
    with running(app_of(model, api_keys=(KEY,))) as address:
        page.goto(address)
        dialog = page.locator("#key-dialog")
        dialog.get_by_label("API key").fill("a wrong key")
        page.keyboard.press("Enter")
        dialog.get_by_text("The server did not take that key").wait_for()
        dialog.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        panel = page.locator("#similarity")
        panel.locator("textarea").fill("a mole\nan owl")
        run(panel)
        assert page.evaluate("[{...localStorage}, document.cookie]") == [{}, ""]
        assert list(page.evaluate("({...sessionStorage})").values()) == [KEY]
        page.reload()
        panel.locator("textarea").wait_for()  # nobody is asked again
        page.get_by_role("button", name="Forget the key").click()
        dialog.get_by_role("button", name="Without a key").click()
        page.locator("#problem", has_text="wants a key").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
    refused = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    assert set(page.complaints) == {refused}
    page.complaints.clear()


def test_failures_are_sentences(page: Any, model: Embedder) -> None:
    with running(app_of(model)) as address:
        panel = visit(page, address, "similarity")
        problem = panel.get_by_role("alert")
        panel.locator("button.main").click()
        assert problem.inner_text().startswith("A map needs two texts")
        panel.locator("textarea").fill("a mole\nan owl")

        body = json.dumps({"error": {"message": "the queue is full", "type": "requests"}})
        busy = {"status": 429, "headers": {"Retry-After": "7"}, "body": body}
        page.route("**/v1/embeddings", lambda route: route.fulfill(**busy))
        panel.locator("button.main").click()
        problem.get_by_text("The queue is full. Try again in 7 seconds.", exact=True).wait_for()
        page.unroute("**/v1/embeddings")
        page.route("**/v1/embeddings", lambda route: route.fulfill(status=502, body="<h1>Bad</h1>"))
        panel.locator("button.main").click()
        problem.get_by_text("The server answered with status 502 and no reason.").wait_for()
        page.unroute("**/v1/embeddings")
    panel.locator("button.main").click()  # the server has gone
    problem.get_by_text("The server does not answer: see whether it still runs, then try again.").wait_for()
    assert all(told.startswith("Failed to load resource") for told in page.complaints)
    page.complaints.clear()


def test_what_a_server_lacks_is_said(page: Any, make_model: MakeModel) -> None:
    with running(app_of(make_model(prompts={}))) as address:
        panel = visit(page, address, "similarity")
        panel.get_by_role("button", name="Example").click()
        panel.locator(".cell").first.wait_for()
        assert panel.locator("select").count() == 0
        assert "--index" in visit(page, address, "search").inner_text()
        assert "This model is dense" in visit(page, address, "experts").inner_text()
        assert "This model has one size" in visit(page, address, "sizes").inner_text()


# ---- everyone can use it ---------------------------------------------------------------------------------


def test_the_keyboard_is_enough(page: Any, address: str) -> None:
    visit(page, address, "live")
    press, focused = page.keyboard.press, "document.activeElement"
    press("1")
    assert page.evaluate(f"{focused}.id") == "tab-similarity"
    press("/")
    page.keyboard.type("a mole\nan owl\nworms")
    press("Control+Enter")
    page.locator("#similarity .cell").first.wait_for()
    for _ in range(20):
        press("Tab")
        if page.evaluate(f"{focused}.className") == "cell":
            break
    for key in ("ArrowRight", "ArrowDown", "End"):
        press(key)
    assert page.evaluate(f"{focused}.getAttribute('aria-label')").endswith("an owl — worms")
    assert "worms" in page.locator("#similarity .readout").inner_text()
    page.locator("#tab-similarity").focus()
    press("ArrowRight")
    press("ArrowRight")
    assert page.evaluate(f"{focused}.id") == "tab-experts"
    press("/")
    page.keyboard.type("the owl hunts 1?")  # in a field, digits and marks are text
    press("Control+Enter")
    page.locator("#experts .token").first.wait_for()
    assert page.locator("#experts textarea").input_value() == "the owl hunts 1?"
    page.locator("#tab-experts").focus()
    press("?")
    assert page.locator("#keys-dialog").is_visible()
    press("Escape")
    assert not page.locator("#keys-dialog").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_and_fits_a_narrow_screen(page: Any, address: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 320, "height": 640})
    for section in SECTIONS:
        panel = visit(page, address, section)
        for box in panel.locator("textarea").all():
            box.fill(
                {"search": "the owl hunts", "sizes": "an owl\na mole"}.get(section, "\n".join(DOCUMENTS * 5))
            )
        if section != "live":
            run(panel)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, section
        heights = panel.locator(".cell").evaluate_all("all => all.map(cell => cell.offsetHeight)")
        assert len(set(heights)) <= 1, section
        assert page.evaluate(LOW_CONTRAST) == [], section
    page.locator("#theme").click()  # the other scheme, chosen on the page
    other = {"light": "dark", "dark": "light"}[scheme]
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == other
    assert page.evaluate(LOW_CONTRAST) == []


# ---- without a browser -----------------------------------------------------------------------------------


def test_the_files_carry_their_headers_and_no_others_can_be_had(model: Embedder) -> None:
    from fastapi.testclient import TestClient

    with TestClient(app_of(model, api_keys=(KEY,))) as client:
        for path in ("/", *(f"/page/{name}" for name in page_files())):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-security-policy"]) == (200, POLICY)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)|\sstyle=|\son\w+=", answer.content)
        for path in ("/page/routes.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/a/b.js"):
            assert client.get(path).status_code == 404, path
        assert client.get("/page/").status_code == 401  # as /page, which is neither a file nor open to all
        assert client.get("/inspect").status_code == 401
        assert client.post("/inspect", json={"text": "a mole"}).status_code == 401


def test_inspect_refuses_what_it_cannot_read(model: Embedder) -> None:
    from fastapi.testclient import TestClient

    with TestClient(app_of(model)) as client:
        wait_until_ready(client)
        facts = client.get("/inspect").json()
        assert (facts["name"], facts["moe_layers"], facts["experts"]) == ("mole <b>model</b>", [1, 3], 4)
        assert (facts["dims"], facts["prompts"], facts["index"]) == ([16, 4], ["document", "query"], None)
        assert facts["parameters"] == model.num_parameters() > facts["active_parameters"]
        for body in ({}, {"text": 3}, {"text": "a", "prompt_name": "none"}, {"text": "a", "more": 1}):
            answer = client.post("/inspect", json=body)
            assert (answer.status_code, type(answer.json()["error"]["message"])) == (400, str), body
        client.app.state.serving.inspecting = MOST_AT_ONCE
        busy = client.post("/inspect", json={"text": "a"})
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        client.app.state.serving.inspecting = 0
        long = client.post("/inspect", json={"text": "mole " * 5000}).json()
        assert (len(long["tokens"]), long["truncated"]) == (model.max_length, True)


def test_the_colours_are_those_of_the_reports() -> None:
    ours = page_files()["style.css"].content.decode()
    house = (Path(__file__).parents[2] / "src/moembed/report/page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", part)) for part in house.split("@media", 1))
    for name in ("page", "card", "ink", "line", "wash", "c1", "c2"):
        assert f"--{name}: light-dark({light[name]}, {dark[name]})" in ours
