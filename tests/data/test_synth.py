"""Synthetic pairs against a chat endpoint on this machine: rows, provenance, resuming, refusals, budgets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chat_server import Reply, chat_server, said
from conftest import MakeModel, Run
from moembed.data.sources import SourceConfig, load_source
from moembed.data.synth.answers import AnswerLog
from moembed.data.synth.checks import is_copy, problem, texts_of
from moembed.data.synth.documents import Documents, DocumentsFile
from moembed.data.synth.endpoint import ChatEndpoint
from moembed.data.synth.generators import Answer, CallableGenerator, Question
from moembed.data.synth.templates import Templates, load_templates
from moembed.data.synth.writing import SynthConfig
from moembed.runs.synth import RoundTrip, SynthSummary, synthesize
from moembed.search.teacher import ModelTeacher
from moembed.types import UserError

ANIMALS = ["mole", "owl", "vole", "worm", "fox", "stag"]


def text_of(animal: str) -> str:
    return f"the {animal} of the meadow: number {ANIMALS.index(animal)}, it lives under the old oak tree"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows: list[dict[str, Any]] = [{"id": f"d-{a}", "text": text_of(a), "language": "en"} for a in ANIMALS]
    rows.append(rows[0] | {"id": "again"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def animal_of(prompt: str) -> str:
    return next(animal for animal in ANIMALS if text_of(animal) in prompt)


def model(payload: dict[str, Any]) -> Reply:
    """What a language model would answer to the built-in templates."""
    prompt = payload["messages"][-1]["content"]
    animal = animal_of(prompt)
    if "other ways" in prompt:
        return said(json.dumps([f"under an oak in the field there is a {animal}"]))
    if "do not answer it" in prompt:
        assert f"Query: {animal} " in prompt
        return said(json.dumps([f"another page on the {animal} and its food", f"{animal}s in old songs"]))
    return said(f'```json\n["{animal} home?", "{animal} number, please"]\n```')


def synth(
    corpus: Path,
    out: Path,
    url: str,
    check: RoundTrip | None = None,
    limit: int | None = None,
    concurrency: int = 4,
    **changes: Any,
) -> SynthSummary:
    config = SynthConfig.model_validate({"queries": 2, "near": 1} | changes)
    generator = ChatEndpoint(url, "stub", at_once=concurrency, backoff=0.01, told=lambda sentence: None)
    documents = Documents(DocumentsFile(path=str(corpus), document="text"), limit)
    try:
        return synthesize(documents, out, generator, config, Templates(), check=check)
    finally:
        generator.close()


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_are_pairs_of_training_with_their_provenance(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with chat_server(model) as server:
        done = synth(corpus, out, server.url, paraphrases=1, hard_negatives=2, seed=7, temperature=0.5)
    assert (done.documents, done.repeated, done.rows) == (6, 1, 18)
    assert done.kept == {"query": 12, "hard_negative": 24, "paraphrase": 6}
    assert done.asked == len(server.requests) == 6 * (1 + 2 + 1)
    assert (done.tokens_in, done.tokens_out) == (24 * 11, 24 * 7)
    assert {(p["model"], p["temperature"], p["seed"]) for _, p in server.requests} == {("stub", 0.5, 7)}
    rows = rows_of(out)
    first, templates = rows[0], Templates()
    assert first == {
        "query": "mole home?",
        "document": text_of("mole"),
        "negatives": ["another page on the mole and its food", "moles in old songs"],
        "language": "en",
        "source": "synthetic-query",
        "provenance": {
            "kind": "query", "generator": f"{server.url}/v1", "model": "stub-1",
            "template": templates.query.hash, "temperature": 0.5, "seed": 7, "document_id": "d-mole",
            "negatives": first["provenance"]["negatives"],
        },
    }  # fmt: skip
    assert first["provenance"]["negatives"]["template"] == templates.hard_negative.hash
    assert rows[2]["query"] == text_of("mole")
    assert rows[2]["provenance"]["template"] == templates.paraphrase.hash
    source = load_source(SourceConfig(path=str(out)))
    assert len(source) == 18
    assert source.pairs([0])[0].negatives == tuple(first["negatives"])
    assert source.count("group") == {"synthetic-query": 12, "synthetic-paraphrase": 6}
    report = json.loads((tmp_path / "pairs.jsonl.report.json").read_text())
    assert report["templates"]["query"]["prompt"] == templates.query.prompt
    assert report["rows"] == 18


def test_answers_that_are_there_are_not_asked_again(corpus: Path, tmp_path: Path) -> None:
    """A larger run asks for the new documents alone; another seed, model or template asks anew."""
    out = tmp_path / "pairs.jsonl"
    with chat_server(model) as server:
        assert synth(corpus, out, server.url, limit=2).asked == 2
        done = synth(corpus, out, server.url)
        assert (done.asked, done.reused, len(server.requests)) == (4, 2, 6)
        whole = out.read_bytes()
        assert synth(corpus, out, server.url).asked == 0
        assert out.read_bytes() == whole
        assert synth(corpus, out, server.url, seed=1).asked == 6


def test_a_killed_run_loses_what_was_under_way_alone(corpus: Path, tmp_path: Path) -> None:
    """SIGKILL while the fourth question waits: three answers are kept, a half line is cut off, then all is
    as if nothing had happened."""
    out, reached, go_on = tmp_path / "pairs.jsonl", threading.Event(), threading.Event()

    def slow(payload: dict[str, Any]) -> Reply:
        if len(server.requests) == 4 and not go_on.is_set():
            reached.set()
            go_on.wait(20)
        return model(payload)

    with chat_server(slow) as server:
        code = "import sys; from moembed.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "synth", str(corpus), "--generator", server.url, "--near", "1"]
        command += ["--model", "stub", "--queries", "2", "--out", str(out), "--concurrency", "1"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        assert reached.wait(60)
        process.kill()
        process.wait()
        go_on.set()
        answers = tmp_path / "pairs.jsonl.answers"
        assert answers.read_bytes().count(b"\n") == 3
        assert not out.exists()
        with answers.open("ab") as file:
            file.write(b'{"key": "half')
        done = synth(corpus, out, server.url)
        assert (done.reused, done.asked) == (3, 3)
        assert synth(corpus, tmp_path / "other.jsonl", server.url).rows == done.rows
    assert (tmp_path / "other.jsonl").read_bytes() == out.read_bytes()


def test_ctrl_c_keeps_what_was_answered(corpus: Path, tmp_path: Path) -> None:
    """Nothing new is asked after it, and what was under way is waited for."""

    @contextmanager
    def interrupted(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        def stop(count: int) -> None:
            raise KeyboardInterrupt

        yield stop

    out = tmp_path / "pairs.jsonl"
    documents = Documents(DocumentsFile(path=str(corpus), document="text"))
    with chat_server(model) as server:
        generator = ChatEndpoint(server.url, "stub", at_once=1)
        with pytest.raises(KeyboardInterrupt):
            synthesize(
                documents, out, generator, SynthConfig(near=1), Templates(), progress=interrupted
            )  # fmt: skip
        asked = len(server.requests)
        kept = AnswerLog(tmp_path / "pairs.jsonl.answers")
        kept.close()
        assert 0 < len(kept) == asked < 6
        assert not out.exists()
        assert synthesize(documents, out, generator, SynthConfig(near=1), Templates()).reused == asked


def test_an_error_keeps_what_was_answered(corpus: Path, tmp_path: Path) -> None:
    def breaks(payload: dict[str, Any]) -> Reply:
        return model(payload) if len(server.requests) < 4 else (401, {"error": {"message": "no credit."}}, {})

    out = tmp_path / "pairs.jsonl"
    told = r"401: no credit; name the environment variable .* with --key-variable"
    with chat_server(breaks) as server, pytest.raises(UserError, match=told):
        synth(corpus, out, server.url, concurrency=1)
    assert not out.exists()
    assert (tmp_path / "pairs.jsonl.answers").read_bytes().count(b"\n") == 3
    with chat_server(model) as server:  # another port is another generator
        assert synth(corpus, out, server.url).asked == 6


def test_a_busy_endpoint_is_asked_again_by_few_at_once(corpus: Path, tmp_path: Path) -> None:
    """Every question meets a 429 first; never more than ``at_once`` questions are on their way."""
    met, now, most, lock = Counter[str](), 0, 0, threading.Lock()
    told: list[str] = []

    def busy(payload: dict[str, Any]) -> Reply:
        nonlocal now, most
        animal = animal_of(payload["messages"][-1]["content"])
        with lock:
            met[animal] += 1
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        wait = {"Retry-After": "0.01"}
        return (429, {"error": {"message": "slow down"}}, wait) if met[animal] == 1 else model(payload)

    config, out = SynthConfig(queries=2, near=1), tmp_path / "pairs.jsonl"
    with chat_server(busy) as server:
        generator = ChatEndpoint(server.url, "stub", at_once=2, backoff=0.01, told=told.append)
        documents = Documents(DocumentsFile(path=str(corpus), document="text"))
        done = synthesize(documents, out, generator, config, Templates())
    assert (done.rows, most, set(met.values())) == (12, 2, {2})
    assert len(told) == 1
    assert "429: slow down; such requests are sent again" in told[0]

    with chat_server(lambda payload: (503, b"down", {"Retry-After": "0"})) as server:
        generator = ChatEndpoint(server.url, "stub", retries=2, told=told.append)
        with pytest.raises(UserError, match="503: down, 3 times in a row"):
            synthesize(documents, tmp_path / "no.jsonl", generator, config, Templates())


def test_answers_that_cannot_be_used_are_counted_by_reason(corpus: Path, tmp_path: Path) -> None:
    answers = {
        "mole": said('["a first one", "", 3, "A  FIRST one", "kept too", "one more"]'),
        "owl": said("I cannot do that."),
        "vole": said(json.dumps([text_of("vole").upper(), text_of("vole")[:-20], "x" * 500, "kept as well"])),
        "worm": said('["cut of', finish="length"),
        "fox": (400, {"error": {"message": "too many tokens"}}, {}),
        "stag": said('{"queries": ["kept by the name", "Kept  too"]}'),
    }
    with chat_server(lambda payload: answers[animal_of(payload["messages"][-1]["content"])]) as server:
        done = synth(corpus, tmp_path / "pairs.jsonl", server.url, queries=5)
        assert done.rejected["query"] == {
            "copy": 2, "repeated": 2, "empty": 1, "not a text": 1, "more than asked for": 1,
            "not JSON": 1, "too long": 1, "cut off": 1, "refused": 1,
        }  # fmt: skip
        kept = [row["query"] for row in rows_of(tmp_path / "pairs.jsonl")]
        assert kept == ["a first one", "kept too", "kept as well", "kept by the name"]
        assert any("1 questions were refused, the first" in note for note in done.notes)
        answers = dict.fromkeys(ANIMALS, said("no"))
        with pytest.raises(UserError, match="no text can be used: query: not JSON 6"):
            synth(corpus, tmp_path / "none.jsonl", server.url, queries=4)
        assert not (tmp_path / "none.jsonl").exists()
        answers = dict.fromkeys(ANIMALS, (422, {"error": "wrong field"}, {}))
        with pytest.raises(UserError, match=r"the first 5 questions were refused: .* wrong field"):
            synth(corpus, tmp_path / "none.jsonl", server.url, queries=1)


def test_a_run_with_many_refusals_can_be_run_again(corpus: Path, tmp_path: Path) -> None:
    """What was answered before is not asked again, and says that the generator answers."""

    def picky(payload: dict[str, Any]) -> Reply:
        asked_of = animal_of(payload["messages"][-1]["content"])
        return model(payload) if asked_of == "mole" else (400, {"error": {"message": "no"}}, {})

    with chat_server(picky) as server:
        once = synth(corpus, tmp_path / "pairs.jsonl", server.url, concurrency=1)
        again = synth(corpus, tmp_path / "pairs.jsonl", server.url, concurrency=1)
    assert (once.asked, once.reused, once.rows) == (1, 0, 2)
    assert (again.asked, again.reused, again.rows) == (0, 1, 2)
    assert again.rejected == once.rejected == {"query": {"refused": 5}}


def test_near_duplicates_of_other_documents_are_left_out(corpus: Path, tmp_path: Path) -> None:
    def alike(payload: dict[str, Any]) -> Reply:
        number = ANIMALS.index(animal_of(payload["messages"][-1]["content"]))
        return said(json.dumps([f"who lives under the old oak tree at night, and why? {number}"]))

    with chat_server(alike) as server:
        assert synth(corpus, tmp_path / "all.jsonl", server.url).rows == 6
        done = synth(corpus, tmp_path / "some.jsonl", server.url, near=0.8)
    assert (done.rows, done.rejected["query"]) == (1, {"repeated": 5})


def test_the_check_keeps_what_finds_its_document(corpus: Path, tmp_path: Path, make_model: MakeModel) -> None:
    """Against ranks by hand, among the documents of queries, and among paraphrases."""
    encoder = make_model(seed=3)
    with chat_server(model) as server:
        synth(corpus, tmp_path / "all.jsonl", server.url, paraphrases=1, hard_negatives=2)
        check = RoundTrip(ModelTeacher(encoder), "toy", 2)
        done = synth(corpus, tmp_path / "kept.jsonl", server.url, check, paraphrases=1, hard_negatives=2)
    expected = []
    for kind in ("query", "paraphrase"):
        rows = [row for row in rows_of(tmp_path / "all.jsonl") if row["provenance"]["kind"] == kind]
        documents = [row["document"] for row in rows]
        query_QM = encoder.vectors([row["query"] for row in rows], role="query").array
        score_QN = query_QM @ encoder.vectors(documents, role="document").array.T
        for i, row in enumerate(rows):
            better = {documents[n] for n in np.flatnonzero(score_QN[i] > score_QN[i, i] + 1e-6)}
            if len(better) < 2:
                more = {"check": "toy", "rank": len(better) + 1}
                expected.append(row | {"provenance": row["provenance"] | more})
    found = rows_of(tmp_path / "kept.jsonl")
    assert 0 < len(found) < 18
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, expected))
    assert sum(some.get("not found again", 0) for some in done.rejected.values()) == 18 - len(found)
    assert done.kept.get("query", 0) * 2 == done.kept.get("hard_negative", 0)


def test_documents_of_a_beir_folder_keep_id_and_language(tmp_path: Path) -> None:
    for table, row in (("corpus", {"title": "Moles", "language": "en"}), ("queries", {})):
        cells = {"_id": f"a {table}", "text": "they dig"} | row
        (tmp_path / f"{table}.jsonl").write_text(json.dumps(cells) + "\n")
    found = list(Documents(DocumentsFile(path=str(tmp_path), document="text")))
    assert [(one.id, one.text, one.language) for one in found] == [("a corpus", "Moles they dig", "en")]


def test_a_function_is_a_generator(corpus: Path, tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    (tmp_path / "my_writer.py").write_text(
        "def write(prompt, seed=None):\n"
        "    assert prompt.startswith('You write')\n"
        "    return '[\"%s, %s?\"]' % (prompt.split()[-3], abs(hash(prompt)) if seed is None else seed)\n"
        "def number(prompt):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    base = ("synth", corpus, "--near", 1, "--out")
    code, out, err = run(*base, "a.jsonl", "--generator", "my_writer:write", "--limit", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 2
    assert "the first 2 documents alone" in err
    assert rows_of(tmp_path / "a.jsonl")[0]["provenance"]["generator"] == "my_writer:write"
    code, _, err = run(*base, "b.jsonl", "--generator", "my_writer:write", "--temperature", 1)
    assert (code, "takes no temperature: leave --temperature out" in err) == (2, True)
    code, _, err = run(*base, "b.jsonl", "--generator", "my_writer:number")
    assert (code, "gave a int: it must give a text" in err) == (2, True)
    code, _, err = run(*base, "b.jsonl", "--generator", "json:loads")
    assert (code, "the generator json:loads failed (JSONDecodeError: " in err) == (2, True)
    for module, body in (
        ("broken", "def write(:"),
        ("failing", "1 / 0"),
        ("lacking", "import no_such_thing"),
    ):
        (tmp_path / f"my_{module}.py").write_text(body)
        code, _, err = run(*base, "b.jsonl", "--generator", f"my_{module}:write")
        told = f"error: cannot import the generator my_{module}:write ("
        assert (code, err.startswith(told)) == (2, True), err
        assert err.count("\n") == 1
    assert CallableGenerator("json:dumps").ignored == []  # takes **kw


def test_the_key_is_sent_and_kept_nowhere(corpus: Path, tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    out = tmp_path / "pairs.jsonl"
    with chat_server(model) as server:
        base = ("synth", corpus, "--model", "stub", "--near", 1, "--out", out, "--generator")
        code, printed, err = run(*base, server.url + "/v1/", "--key-variable", "SECRET")
        assert code == 0, err
        assert server.requests[0][0]["Authorization"] == "Bearer s3cret"
        assert "12 pairs of 6 documents, 1 repeated" in printed
        assert not any("s3cret" in path.read_text() for path in tmp_path.iterdir())
        code, _, err = run(*base, server.url, "--overwrite", "--key-variable", "NOT_SET")
        assert (code, "NOT_SET, which --key-variable names, is not set" in err) == (2, True)
        code, _, err = run(*base, server.url.replace("//", "//me:word@"), "--overwrite")
        assert (code, "holds a user, a password or a query" in err) == (2, True)
        code, _, err = run(*base, server.url + "/other", "--overwrite")
        assert (code, "404: no route /other/chat/completions; check the address" in err) == (2, True)


def test_templates_say_what_they_need(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("query: {prompt: 'ask $count about $document', longest: 9}\n")
    found = load_templates(file)
    assert found.query.fill("a $5 mole", "", 3) == "ask 3 about a $5 mole"
    assert found.paraphrase == Templates().paraphrase
    assert found.query.hash != Templates().query.hash
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    file.write_text(page.split("test_synth.py loads it -->\n```yaml\n")[1].split("```")[0])
    assert load_templates(file).query.longest == 200
    for prompt, told in (
        ("nothing", "does not say"), ("$document for $5", "stands alone"), ("$document $page", "is unknown"),
        ("$document $query", "there is no"),
    ):  # fmt: skip
        file.write_text(json.dumps({"query": {"prompt": prompt}}))
        with pytest.raises(UserError, match=told):
            load_templates(file)


def test_texts_of_an_answer() -> None:
    def of(text: str) -> Any:
        return texts_of(Answer(text, "m"))

    assert of('["a", "b"]') == of('Here:\n```json\n["a", "b"]\n```\nDone.') == ["a", "b"]
    assert of('<think>["no"]</think>\nSure: ["a"] it is') == ["a"]
    assert of('{"texts": ["a"], "count": 1}') == ["a"]
    assert of('{"a": ["x"], "b": ["y"]}') == of("a, b") == of('"a"') == "not JSON"
    assert of("") == of("<think>hm</think>") == of("[]") == "empty answer"
    assert texts_of(Answer('["a"]', "m", "length")) == "cut off"
    assert problem("\ud800", ["a"], [], 9) == "not UTF-8"


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("The mole digs  tunnels under the meadow", True),
        ("mole digs tunnels under the mead", True),
        ("the mole digs tunnels under the meadow!", True),
        ("what digs tunnels?", False),
        ("under the meadow", False),
    ],
)
def test_copies(text: str, copied: bool) -> None:
    assert is_copy(text, "the mole digs tunnels under the meadow") == copied


def test_the_log_of_answers_takes_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"query": "a"}\n')
    with pytest.raises(UserError, match="line 1, is no answer that `moembed synth` wrote"):
        AnswerLog(path)
    for other in ("a note without an end of line", '{"key'):
        path.write_text(other)
        if other.startswith("{"):  # the beginning of a line of ours, which a kill cut short
            AnswerLog(path).close()
            assert path.read_text() == ""
            continue
        with pytest.raises(UserError, match="line 1, is no answer that `moembed synth` wrote"):
            AnswerLog(path)
        assert path.read_text() == other
    endpoint = ChatEndpoint("http://127.0.0.1:9", "m")
    question = Question("s", "p")
    assert question.key(endpoint) != question.key(ChatEndpoint("http://127.0.0.1:9", "n"))
    with pytest.raises(UserError, match=r"no endpoint answers at http://127.0.0.1:9/v1"):
        endpoint.answer(question)
