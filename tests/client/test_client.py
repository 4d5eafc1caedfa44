"""A served model is the model: its vectors, its spaces, and what is evaluated, mined and indexed with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from conftest import MakeModel, Run
from live_server import live
from moembed.client.model import Client
from moembed.embedder import Embedder
from moembed.encoding import FULL, View
from moembed.families.flat import FlatMoE
from moembed.reranker import Reranker
from moembed.runs.evaluate import evaluate
from moembed.runs.system import EvaluationOptions
from moembed.search.embed import EmbedConfig, embed_file
from moembed.search.index import Index
from moembed.types import TruncationWarning, UserError

LONG = "the mole digs tunnels under the meadow " * 20


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Embedder:
    made = make_model(moe=FlatMoE(layers=(1, 3), num_experts=4))
    made.dims = (8, 16)
    return made


@pytest.fixture(scope="module")
def url(model: Embedder) -> Iterator[str]:
    with live(model, model="toys/mole") as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, batch_texts=3) as made:
        yield made


@pytest.mark.parametrize("role", [None, "query", "document", "sts"])
@pytest.mark.parametrize("view", [FULL, View(dim=8), View(dim=5)])
def test_vectors_are_those_of_the_model(
    client: Client, model: Embedder, texts: list[str], role: str | None, view: View
) -> None:
    ours = client.vectors([*texts, LONG], role=role, view=view)
    theirs = model.vectors([*texts, LONG], role=role, view=view)
    np.testing.assert_allclose(ours.array, theirs.array, atol=1e-6)
    assert ours.array.dtype == np.float32
    assert (ours.space, ours.truncated) == (theirs.space, theirs.truncated)
    assert ours.space == client.space(role=role, view=view)


def test_a_prompt_takes_the_place_of_that_of_the_role(
    client: Client, model: Embedder, texts: list[str]
) -> None:
    ours, theirs = (m.vectors(texts, role="query", prompt="owls: ") for m in (client, model))
    np.testing.assert_allclose(ours.array, theirs.array, atol=1e-6)
    assert ours.space == theirs.space != model.space(role="query")


def test_what_the_model_is(client: Client, model: Embedder) -> None:
    assert (client.dim, client.max_length, client.dtype) == (model.dim, model.max_length, model.dtype)
    assert (client.prompts, client.info.name, client.info.dims) == (model.prompts, "mole", (8, 16))
    for role in ("query", "document", "sts"):
        assert client.role_prompt(role) == model.role_prompt(role)
        assert client.role_prefix(role) == model.role_prefix(role)
    counts = client.info.parameters, client.info.active_parameters
    assert counts == (model.num_parameters(), model.num_parameters(active=True))


def test_encode_is_that_of_the_model(client: Client, model: Embedder, texts: list[str]) -> None:
    np.testing.assert_allclose(client.encode(texts), model.encode(texts), atol=1e-6)
    one = client.encode("moles eat worms", prompt_name="query", dim=8)
    assert one.shape == (8,)
    np.testing.assert_allclose(one, model.encode("moles eat worms", prompt_name="query", dim=8), atol=1e-6)
    query, document = client.encode_query(texts), client.encode_document(texts, dim=8)
    np.testing.assert_allclose(query, model.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(document, model.encode_document(texts, dim=8), atol=1e-6)
    np.testing.assert_allclose(
        client.similarity(query, query[0]), model.similarity(query, query[0]), atol=1e-6
    )
    with pytest.warns(TruncationWarning, match=f"1 of 2 texts were cut at {model.max_length} tokens"):
        client.encode(["owl", LONG])


def test_no_texts_and_a_count_of_those_that_are_done(client: Client, texts: list[str]) -> None:
    assert client.vectors([]).array.shape == (0, 16)
    done: list[int] = []
    client.vectors(texts, progress=done.append)
    assert sum(done) == len(texts)


def test_tokens_are_counted_as_the_model_counts(client: Client, model: Embedder, texts: list[str]) -> None:
    for options in ({}, {"role": "query"}, {"prompt": "owls: "}, {"prompt": 'the mole "{}" digs'}):
        assert client.num_tokens([*texts, LONG], **options) == model.num_tokens([*texts, LONG], **options)


def test_several_threads_share_a_client(client: Client, model: Embedder, texts: list[str]) -> None:
    lists = [[f"{text} {n}" for text in texts] for n in range(6)]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.__setitem__(n, client.vectors(lists[n]).array))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for n, listed in enumerate(lists):
        np.testing.assert_allclose(found[n], model.vectors(listed).array, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.vectors(["a"], view=View(layers=2)), "layers"),
        (lambda c: c.vectors(["a"], view=View(dim=17)), "1..16"),
        (lambda c: c.vectors(["a"], view=View(dim=0)), "1..16"),
        (lambda c: c.vectors("a text"), "must be a list"),
        (lambda c: c.vectors(["a", "\ud800"]), "surrogate"),
        (lambda c: c.encode(["a"], prompt_name="qery"), "known: document, query"),
        (lambda c: c.encode(["a"], prompt_name="query", prompt=""), "not both"),
        (lambda c: c.search("owl"), "no index"),
        (lambda c: c.rerank("owl", ["a"]), "no reranker"),
    ],
)
def test_mistakes_are_one_sentence(client: Client, call: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(client)  # type: ignore[operator]


def test_a_key_is_asked_for(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEMBED_API_KEY", raising=False)
    with live(model, api_keys=("secret",)) as url:
        with pytest.raises(UserError, match=r"401.*MOEMBED_API_KEY"):
            Client(url)
        with Client(url, api_key="secret") as client:
            assert client.encode(["owl"]).shape == (1, 16)


def test_the_rest_of_the_server(
    model: Embedder, tiny_reranker: Reranker, texts: list[str], tmp_path: Path
) -> None:
    rows = [{"_id": f"d{n}", "text": text, "year": n} for n, text in enumerate(texts)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = EmbedConfig(prompt=model.role_prefix("document"))
    folder = embed_file(model, source, tmp_path / "index", config).path
    with live(model, folder, tiny_reranker) as url, Client(url, batch_texts=3) as client:
        hits = client.search("what does a mole eat?", k=3)
        found = Index.open(folder).search(model.encode_query(["what does a mole eat?"]), 3)
        assert [hit.id for hit in hits] == [rows[number]["_id"] for number in found.index[0]]
        assert [hit.row["text"] for hit in hits] == [texts[number] for number in found.index[0]]
        np.testing.assert_allclose([hit.score for hit in hits], found.score[0], atol=1e-6)
        question = "what does a mole eat?"
        late = client.search(question, k=9, where="year >= 4")
        assert sorted(hit.id for hit in late) == [f"d{n}" for n in range(4, len(rows))]
        both = Index.open(folder).search(question, 3, hybrid=True, model=model)
        assert [hit.id for hit in client.search(question, k=3, hybrid=True)] == [hit.id for hit in both[0]]
        reranked = client.search("what does a mole eat?", k=3, rerank=True)
        shown = [hit.row["text"] for hit in reranked]
        assert sorted(shown) == sorted(hit.row["text"] for hit in hits)
        expected_K = tiny_reranker.scores("what does a mole eat?", shown)
        np.testing.assert_allclose([hit.score for hit in reranked], expected_K, atol=1e-5)
        assert (np.diff(expected_K) <= 0).all()
        scores = client.rerank("owl", texts)
        expected = tiny_reranker.scored("owl", texts, activation="sigmoid").array
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        with pytest.raises(UserError, match="truncate"):
            client.rerank("owl", [LONG])
        assert client.rerank("owl", [LONG], truncate=True).shape == (1,)


# ---- what is done with encoders ----------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path, texts: list[str]) -> Path:
    folder = tmp_path / "task"
    (folder / "qrels").mkdir(parents=True)
    documents = [text for text in texts if text]
    rows = [json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"_id": f"q{n}", "text": text[:12]}) for n, text in enumerate(documents)]
    (folder / "queries.jsonl").write_text("\n".join(rows))
    lines = [f"q{n}\td{n}\t1" for n in range(len(documents))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_an_evaluation_is_that_of_the_model_itself(
    client: Client, model: Embedder, task: Path, tmp_path: Path, cached: bool
) -> None:
    options = EvaluationOptions(baselines=False, dims=(8,), cache=tmp_path / "cache" if cached else None)
    results = [evaluate({"it": one}, task, options) for one in (client, model)]
    ours, theirs = (result.to_json() for result in results)
    assert ours["tasks"]["task"]["metrics"] == theirs["tasks"]["task"]["metrics"]
    assert ours["tasks"]["task"]["truncated"] == theirs["tasks"]["task"]["truncated"]
    assert ours["curves"] == theirs["curves"]
    for name in ("parameters", "active_parameters", "bytes_per_vector"):
        assert ours["cost"]["it"][name] == theirs["cost"]["it"][name]
    assert ours["made"]["systems"] == {"it": client.url}


def test_the_command_line_takes_an_address_for_a_model(
    run: Run, url: str, model: Embedder, task: Path, tmp_path: Path
) -> None:
    corpus = task / "corpus.jsonl"
    # evaluate
    code, out, err = run("evaluate", url, "--tasks", task, "--no-baselines", "--json")
    assert code == 0, err
    expected = evaluate({"it": model}, task, EvaluationOptions(baselines=False)).to_json()
    found = json.loads(out)["tasks"]["task"]["metrics"][url]
    assert found == expected["tasks"]["task"]["metrics"]["it"]
    # index and search, without naming the model again
    code, _, err = run("index", corpus, "--model", url, "--out", tmp_path / "index")
    assert code == 0, err
    assert Index.open(tmp_path / "index").space_id == model.space(role="document")
    code, out, err = run("search", tmp_path / "index", "moles eat worms", "-k", 1, "--json")
    assert code == 0, err
    assert len(json.loads(out)) == 1
    # mine
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "what does a mole eat?", "document": "moles eat worms"}\n')
    options = ["--corpus", corpus, "--rule", "none", "--json"]
    rows = {}
    model.save_pretrained(tmp_path / "model")
    for name in (url, tmp_path / "model"):
        mined = tmp_path / f"mined-{len(rows)}.jsonl"
        code, _, err = run("mine", pairs, "--teacher", name, "--out", mined, *options)
        assert code == 0, err
        rows[str(name)] = mined.read_text()
    assert len(set(rows.values())) == 1
    # stress
    code, out, err = run("stress", url, "--only", "noise", "--task", task, "--json")
    assert code == 0, err
    assert list(json.loads(out)["noise"]["systems"]) == [url]


def test_a_dtype_that_is_not_served_is_refused(run: Run, url: str, task: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", url, "--tasks", task, "--no-baselines", "--dtype", "bfloat16")
    assert (code, "serves float32" in err) == (2, True)
    corpus = task / "corpus.jsonl"
    code, _, err = run("index", corpus, "--model", url, "--out", tmp_path / "i", "--dtype", "bfloat16")
    assert (code, "serves float32" in err) == (2, True)


def test_where_files_are_needed_a_server_is_refused(run: Run, url: str) -> None:
    code, _, err = run("inspect", url)
    assert (code, "is a server" in err) == (2, True)
