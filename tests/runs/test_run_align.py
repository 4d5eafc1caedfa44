"""`moembed align` and `moembed fuse` from the outside: their folders give the vectors they promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import MakeModel, Run
from moembed.compare.scores import Scores
from moembed.embedder import Embedder
from moembed.evaluation.files import load_any
from moembed.evaluation.tasks import evaluate
from moembed.inference.languages import detect
from moembed.runs import align
from moembed.search.alignment import group_means, projection, shift
from moembed.search.composed import ComposedEncoder
from moembed.search.index_model import open_encoder
from moembed.types import UserError
from tagged_models import tagged_model

GERMAN = ["Der Maulwurf gräbt einen Tunnel.", "Die Eule jagt nachts auf der Wiese.", "Wo wohnen die Eulen?"]
ENGLISH = ["The mole digs a tunnel.", "The owl hunts at night on the meadow.", "Where do the owls live?"]
ROWS = [{"text": t, "language": "de"} for t in GERMAN] + [{"text": t, "language": "en"} for t in ENGLISH]
TEXTS = [row["text"] for row in ROWS]
LANGUAGES = [row["language"] for row in ROWS]


@pytest.fixture
def place(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_model(num_layers=2, max_positions=128).save_pretrained("model")
    make_model(seed=1, num_layers=2, width=24, max_positions=128).save_pretrained("other")
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = [{"sentence1": a, "sentence2": b} for a, b in zip(GERMAN, ENGLISH, strict=True)]
    Path("bitext.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path


def unit(vector_NM: np.ndarray) -> np.ndarray:
    return vector_NM / np.linalg.norm(vector_NM, axis=1, keepdims=True)


def test_a_projection_becomes_a_layer_of_the_model(place: Path, run: Run) -> None:
    code, out, err = run("align", "model", "--texts", "texts.jsonl", "--out", "aligned", "--strengths", "0.6")
    assert code == 0, err
    assert "project, 2 groups" in out
    assert "rest on few texts" in err
    plain_NM = Embedder("model").encode_document(TEXTS)
    expected_NM = unit(projection(group_means(plain_NM, LANGUAGES), 0.6)(plain_NM))
    aligned = Embedder("aligned")
    np.testing.assert_allclose(aligned.encode_document(TEXTS), expected_NM, atol=1e-5)
    assert aligned.space() != Embedder("model").space()
    kinds = [
        entry["type"].rpartition(".")[2] for entry in json.loads(Path("aligned/modules.json").read_text())
    ]
    assert kinds == ["Transformer", "Pooling", "Normalize", "Dense", "Normalize"]


def test_a_shift_is_a_folder_that_finds_the_language(place: Path, run: Run) -> None:
    assert detect(TEXTS) == LANGUAGES
    options = ("--texts", "texts.jsonl", "--method", "shift", "--json", "--out", "shifted")
    code, out, err = run("align", "model", *options)
    assert code == 0, err
    assert json.loads(out)["groups"] == {"de": 3, "en": 3}
    shifted = open_encoder("shifted")
    plain_NM = Embedder("model").encode_document(TEXTS)
    means = group_means(plain_NM, LANGUAGES)
    expected_NM = unit(shift(plain_NM, LANGUAGES, means, 1.0))
    np.testing.assert_allclose(shifted.vectors(TEXTS, role="document").array, expected_NM, atol=1e-5)
    french = "Où est la gare, s'il vous plaît ?"
    with pytest.warns(UserWarning, match="1 of 1 texts are in none of the languages"):
        found_NM = shifted.vectors([french], role="document").array
    np.testing.assert_allclose(found_NM, Embedder("model").encode_document([french]), atol=1e-6)


def test_the_strength_is_chosen_by_tasks_and_all_are_reported(place: Path, run: Run) -> None:
    options = ("--texts", "texts.jsonl", "--strengths", "0.5,1", "--tasks", "bitext.jsonl", "--json")
    code, out, err = run("align", "model", *options, "--out", "aligned")
    assert code == 0, err
    made = json.loads(out)
    assert [entry["strength"] for entry in made["sweep"]] == [0, 0.5, 1]
    scores = [entry["score"]["value"] for entry in made["sweep"]]
    assert made["strength"] == [0.5, 1][int(np.argmax(scores[1:]))]
    assert made["sweep"][0]["difference"] is None
    assert made["sweep"][2]["difference"]["mean"] == pytest.approx(scores[2] - scores[0])
    gaps = [entry["gap"] for entry in made["sweep"]]
    assert gaps[0] > gaps[1] > gaps[2]
    task = load_any("bitext.jsonl")
    for entry in made["sweep"]:
        run(
            "align",
            "model",
            "--texts",
            "texts.jsonl",
            "--strengths",
            entry["strength"],
            "--out",
            "one",
            "--overwrite",
        )
        value_Q = evaluate(task, Embedder("one")).values["f1"]
        assert entry["tasks"]["bitext"]["value"] == pytest.approx(value_Q.mean())


def test_nothing_moved_is_not_taken_where_it_was_not_asked_for(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, compared = align.compare, []

    def swept(encoder: object, tasks: object, made: dict[float, object], bar: object) -> object:
        items = ["0", "1", "2"]
        return {
            strength: {
                "bitext": Scores(
                    "bitext", "bitext", items, [""] * 3, np.ones(3), {"f1": np.full(3, 1 - strength)}
                )
            }
            for strength in made
        }

    monkeypatch.setattr(align, "_sweep", swept)
    monkeypatch.setattr(align, "compare", lambda *given: compared.append(given) or real(*given))
    options = (
        "--texts",
        "texts.jsonl",
        "--tasks",
        "bitext.jsonl",
        "--json",
        "--overwrite",
        "--out",
        "aligned",
    )
    code, out, err = run("align", "model", *options, "--strengths", "0.5,0.75")
    assert code == 0, err
    assert json.loads(out)["strength"] == 0.5
    assert "nothing moved (strength 0) scores 1.000 on the tasks, above the 0.500 of strength 0.5" in err
    assert len(compared) == 1
    code, out, err = run("align", "model", *options)
    assert (code, json.loads(out)["strength"]) == (0, 0)
    assert "nothing moved" not in err


def test_texts_that_are_cut_are_told(place: Path, run: Run) -> None:
    with Path("texts.jsonl").open("a") as opened:
        opened.write(json.dumps({"text": "The mole digs. " * 90, "language": "en"}) + "\n")
    code, out, err = run("align", "model", "--texts", "texts.jsonl", "--out", "aligned", "--json")
    assert (code, json.loads(out)["truncated"]) == (0, 1), err
    assert "1 texts longer than the model reads were cut" in err
    options = ("--texts", "texts.jsonl", "--dim", "4", "--json", "--out", "both")
    code, out, err = run("fuse", "model", "other", *options)
    assert (code, json.loads(out)["truncated"]) == (0, 1), err
    assert "1 texts longer than the model reads were cut" in err


def test_two_models_are_one_in_evaluate_and_search(place: Path, run: Run) -> None:
    options = ("--weights", "1,3", "--texts", "texts.jsonl", "--dim", "4")
    code, out, err = run("fuse", "model", "other", *options, "--out", "both")
    assert code == 0, err
    assert "4 coordinates" in out
    models = [Embedder("model"), Embedder("other")]
    together = ComposedEncoder(models, [1, 3])
    cosine_NN = 0.25 * models[0].similarity(*[models[0].encode_query(TEXTS)] * 2)
    cosine_NN += 0.75 * models[1].similarity(*[models[1].encode_query(TEXTS)] * 2)
    query_NM = together.vectors(TEXTS, role="query").array
    np.testing.assert_allclose(query_NM @ query_NM.T, cosine_NN, atol=1e-5)

    both = open_encoder("both")
    assert (both.dim, both.vectors(TEXTS, role="query").array.shape) == (4, (6, 4))
    code, out, err = run(
        "evaluate",
        "model",
        "both",
        "--tasks",
        "bitext.jsonl",
        "--no-baselines",
        "--dtype",
        "float32",
        "--json",
    )
    assert code == 0, err
    expected = evaluate(load_any("bitext.jsonl"), both).values["f1"].mean()
    metrics = json.loads(out)["tasks"]["bitext"]["metrics"]
    assert metrics["both"]["f1"]["value"] == pytest.approx(expected)
    assert run("index", "texts.jsonl", "--model", "both", "--out", "index")[0] == 0
    code, out, err = run("search", "index", GERMAN[0], "--json", "-k", 1)
    assert code == 0, err
    assert json.loads(out)[0]["text"] in TEXTS


def test_what_cannot_be_done_is_said(place: Path, run: Run, make_model: MakeModel) -> None:
    assert run("fuse", "model", "other", "--out", "both")[0] == 0
    assert run("fuse", "model", "other", "--dim", 2, "--texts", "texts.jsonl", "--out", "broken")[0] == 0
    Path("broken/composed.safetensors").write_bytes(b"x")
    make_model(seed=2, num_layers=1).save_pretrained("later")
    assert run("fuse", "model", "later", "--out", "changed")[0] == 0
    make_model(seed=3, num_layers=1).save_pretrained("later")
    evaluate = ("--tasks", "bitext.jsonl", "--no-baselines")
    for arguments, complaint in [
        (("align", "both", "--texts", "texts.jsonl", "--out", "x"), "made of other models already"),
        (("inspect", "both"), "made of the vectors of other models"),
        (("evaluate", "both", *evaluate, "--processes", "2"), "leave out processes"),
        (("evaluate", "static", "both", *evaluate), "no other model here tells its base"),
        (("evaluate", "broken", *evaluate), "missing or damaged"),
        (("evaluate", "changed", *evaluate), "gives other query vectors"),
    ]:
        code, _, err = run(*arguments)
        assert (code, complaint in err) == (2, True), err
        assert err.strip().splitlines()[-1].startswith("error: ")


def test_a_vector_of_every_token_is_no_vector_to_work_on(
    place: Path, run: Run, make_model: MakeModel
) -> None:
    make_model(pooling="tokens").save_pretrained(place / "late")
    said = (
        "error: late: the model makes a vector of every token (pooling 'tokens'), and what is made of its "
        "vectors needs one vector of a text: take Embedder.encode_tokens, `moembed index` and `moembed "
        "search`, or another model"
    )
    for command in (("fuse", "model", "late"), ("align", "late", "--texts", "texts.jsonl")):
        code, _, err = run(*command, "--out", "made")
        assert (code, " ".join(err.split())) == (2, said)
        assert not (place / "made").exists()


def test_a_folder_that_names_a_model_does_not_take_its_place(place: Path, run: Run) -> None:
    """Its weights would be gone, and the folder would name itself."""
    texts = ("--texts", "texts.jsonl")
    Path("run").mkdir()
    Path("other").rename("run/model")  # a run folder stands for the model in it
    Path("run/recipe.yaml").touch()
    for command in (
        ("fuse", "model", "run", "--out", "model"),
        ("fuse", "model", "run", "--out", "./run"),
        ("align", "model", *texts, "--method", "shift", "--out", "../" + place.name + "/model"),
    ):
        code, _, err = run(*command, "--overwrite")
        assert (code, "cannot stand in the place of" in err) == (2, True), err
    assert Embedder("model").dim < Embedder("run").dim
    assert run("align", "model", *texts, "--out", "model", "--overwrite")[0] == 0  # a whole model may


def test_a_model_that_cuts_its_vectors_is_aligned_whole(place: Path, run: Run) -> None:
    whole_NM = Embedder("model").encode_document(TEXTS)
    model = Embedder("model")
    model.dim = 8
    model.save_pretrained("cut")
    assert Embedder("cut").encode(TEXTS).shape == (6, 8)
    code, _, err = run("align", "cut", "--texts", "texts.jsonl", "--out", "aligned")
    assert code == 0, err
    assert "cut cuts its vectors to 8 coordinates; all 16 are kept" in err
    expected_NM = unit(projection(group_means(whole_NM, LANGUAGES), 1.0)(whole_NM))
    np.testing.assert_allclose(Embedder("aligned").encode_document(TEXTS), expected_NM, atol=1e-5)


def test_roles_and_tasks_that_would_be_taken_for_others_are_refused(place: Path, run: Run) -> None:
    Path("more").mkdir()
    Path("more/bitext.jsonl").write_text(Path("bitext.jsonl").read_text())
    texts = ("--texts", "texts.jsonl", "--out", "x")
    for command, complaint in (
        (("align", "model", *texts, "--role", "querry"), "role 'querry' is not known"),
        (("fuse", "model", "other", *texts, "--dim", "2", "--role", "querry"), "role 'querry' is not known"),
        (
            ("align", "model", *texts, "--tasks", "bitext.jsonl", "--tasks", "more/bitext.jsonl"),
            "two tasks have the same name",
        ),
    ):
        code, _, err = run(*command)
        assert (code, complaint in err) == (2, True), err
    assert run("align", "model", *texts, "--role", "query")[0] == 0


def test_the_tag_of_the_environment_is_that_of_the_texts(
    place: Path, run: Run, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = make_model(num_layers=2, max_positions=128).parts()
    model = tagged_model(dense, tags=["de", "en"], default_tag="de")
    model.save_pretrained("tagged")
    monkeypatch.setenv("MOEMBED_TAG", "en")
    code, _, err = run("align", "tagged", "--texts", "texts.jsonl", "--out", "aligned")
    assert code == 0, err
    plain_NM = model.encode_document(TEXTS, tag="en")
    expected_NM = unit(projection(group_means(plain_NM, LANGUAGES), 1.0)(plain_NM))
    aligned_NM = Embedder("aligned").encode_document(TEXTS, tag="en")
    np.testing.assert_allclose(aligned_NM, expected_NM, atol=1e-5)
    assert run("fuse", "tagged", "tagged", "--dim", "2", "--texts", "texts.jsonl", "--out", "both")[0] == 0
    code, _, err = run("align", "model", "--texts", "texts.jsonl", "--out", "x")
    assert (code, "does not choose experts by tags" in err) == (2, True), err


def test_a_damaged_config_is_one_sentence(place: Path, run: Run) -> None:
    texts = ("--texts", "texts.jsonl")
    assert run("align", "model", *texts, "--method", "shift", "--out", "shifted")[0] == 0
    file = Path("shifted/config.json")
    values = json.loads(file.read_text())
    for key, wrong in (
        ("weights", None), ("weights", []), ("weights", ["x"]), ("languages", "de"), ("languages", [1, 2]),
        ("languages", []), ("languages", ["de"]), ("strength", None), ("strength", 7), ("strength", [1]),
        ("models", [1]), ("models", []),
    ):  # fmt: skip
        file.write_text(json.dumps(values | {key: wrong}))
        with pytest.raises(UserError, match="make the folder again"):
            open_encoder("shifted")
