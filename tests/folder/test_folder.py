"""Model folders: what is written is read back and loads in sentence-transformers; what is wrong is named."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer as Backend
from torch import Tensor

from conftest import HfFolder, MakeModel, Run, randomise
from moembed.embedder import Embedder
from moembed.families.registry import family_of
from moembed.folder import tokenizer as tokenizer_module
from moembed.folder import write as folder_module
from moembed.folder.read import read_config, read_folder, read_settings
from moembed.folder.settings import SENTENCE_TRANSFORMERS, TRANSFORMER_FILES
from moembed.folder.write import write_folder
from moembed.model.encoder import Encoder
from moembed.model.pooling import POOLING, Pooling, PoolingConfig
from moembed.model.spec import EncoderSpec
from moembed.types import TruncationWarning, UserError
from moembed.weights.positions import to_rope
from tiny_configs import CONFIGS, ENCODERS

PLAIN = sorted(m for m in POOLING if not (PoolingConfig(m).learns or PoolingConfig(m).per_token))

EQUAL = 1e-5  # fp32 on two orders of summation; vectors have length 1
TRANSFORMER = TRANSFORMER_FILES[0]
KINDS = ["bert", "roberta", "xlm-roberta", "nomic_bert"]


def load(path: Path) -> Embedder:
    return Embedder.from_pretrained(path, device="cpu")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", PLAIN)
def test_a_folder_reads_back_as_it_was_written(
    pooling: str, moe_model: Embedder, tmp_path: Path, texts: list[str]
) -> None:
    moe_model.pooling = Pooling(PoolingConfig(pooling), 16)
    moe_model.tokenizer.max_length = 30
    moe_model.tokenizer.default_prompt = "document"
    moe_model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.encoder.spec == moe_model.encoder.spec
    assert again.pooling.name == pooling
    assert (again.tokenizer.max_length, again.tokenizer.default_prompt) == (30, "document")
    assert again.tokenizer.prompts == moe_model.tokenizer.prompts
    assert again.tokenizer.backend.to_str() == moe_model.tokenizer.backend.to_str()
    for name, tensor in moe_model.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor), name
    assert distance(again.encode(texts, "query"), moe_model.encode(texts, "query")) <= EQUAL
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_tokenizers_files_are_kept_byte_for_byte(minilm: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "model", read_folder(minilm))
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    assert all((tmp_path / "model" / name).read_bytes() == (minilm / name).read_bytes() for name in names)


def test_weights_keep_their_precision_on_disk(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.bfloat16().save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_in_several_files_are_one_model(hf_folder: HfFolder, texts: list[str]) -> None:
    folder, _ = hf_folder("bert")
    expected = load(folder).encode(texts)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert distance(load(folder).encode(texts), expected) <= EQUAL
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2\.safetensors is missing"):
        read_folder(folder)


def test_a_folder_with_only_a_word_list_gets_its_tokenizer_made(
    hf_folder: HfFolder, backend: Any, texts: list[str]
) -> None:
    folder, _ = hf_folder("bert")
    expected = load(folder).encode(texts)
    words = sorted(backend.get_vocab(), key=backend.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert distance(load(folder).encode(texts), expected) <= EQUAL


def test_a_tokenizer_that_cannot_be_made_is_said_so(
    hf_folder: HfFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "find_spec", lambda name: name)  # whether or not it is installed
    folder, _ = hf_folder("xlm-roberta")
    (folder / "tokenizer.json").unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"no sentences, no pieces")
    with pytest.raises(UserError, match=r"has no tokenizer\.json and none could be made") as error:
        read_folder(folder)
    assert "\n" not in str(error.value)


# ---- sentence-transformers -----------------------------------------------------------------------


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: Path) -> None:
    texts = [
        "", " ", "a", "How do I read a parquet file lazily?", "Où vivent les taupes ?", "土竜",
        "Кроты роют тоннели", "يحفر الخلد", "मोल", "🦔 e\u0301 ﬁ\u200bx", "tab\tnew\nline", "mole " * 600,
    ]  # fmt: skip
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    found = load(minilm).vectors(texts)
    ours, truncated = found.array, found.truncated
    assert distance(ours, theirs) <= EQUAL
    assert truncated == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_model_we_write_loads_in_sentence_transformers(
    kind: str, hf_folder: HfFolder, tmp_path: Path, texts: list[str]
) -> None:
    parts = read_folder(hf_folder(kind)[0])
    parts.tokenizer.prompts = {"query": "query: ", "document": "document: "}
    model = Embedder(replace(parts)).eval()
    model.save_pretrained(tmp_path / "ours")
    theirs = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert distance(model.encode(texts), theirs.encode(texts)) <= EQUAL
    assert distance(model.encode_query(texts), theirs.encode_query(texts)) <= EQUAL
    assert distance(model.encode_document(texts), theirs.encode_document(texts)) <= EQUAL


@pytest.mark.parametrize("pooling", [*PLAIN, "cls+max", "weightedmean+mean_sqrt_len_tokens+mean"])
def test_every_pooling_means_the_same_in_sentence_transformers(
    pooling: str, hf_folder: HfFolder, tmp_path: Path, texts: list[str]
) -> None:
    model = Embedder(replace(read_folder(hf_folder("bert")[0]), pooling=PoolingConfig(pooling))).eval()
    model.save_pretrained(tmp_path / "ours")
    theirs = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert distance(model.encode(texts), theirs.encode(texts)) <= EQUAL


def test_a_folder_sentence_transformers_wrote_gives_its_vectors(
    hf_folder: HfFolder, tmp_path: Path, texts: list[str]
) -> None:
    theirs = SentenceTransformer(str(hf_folder("bert")[0]), device="cpu")
    theirs.prompts = {"query": "query: ", "document": ""}
    theirs.max_seq_length = 9
    theirs.save(str(tmp_path / "theirs"))
    ours = load(tmp_path / "theirs")
    assert ours.tokenizer.max_length == 9
    assert ours.tokenizer.prompts == {"query": "query: ", "document": ""}
    vectors = ours.vectors(texts, role="query").array
    assert distance(vectors, theirs.encode(texts, prompt_name="query")) <= EQUAL


def test_the_length_limit_is_the_smallest_one_stated(hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("roberta")
    spec = read_folder(folder).spec
    assert read_settings(folder, spec).max_length == 38  # 40 positions, the first two unused
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert read_settings(folder, spec).max_length == 38
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 30}')
    assert read_settings(folder, spec).max_length == 30
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert read_settings(folder, spec).max_length == 20


def test_a_length_beyond_the_positions_is_said(hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("bert")
    (folder / TRANSFORMER).write_text('{"max_seq_length": 99}')
    with pytest.warns(UserWarning, match="says 99 tokens, the model has positions for 40"):
        assert load(folder).tokenizer.max_length == 40


PROMPT_SETS: list[dict[str, Any]] = [
    {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"},
    {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "document"},
    {"prompts": {"query": "", "document": "document: "}, "default_prompt_name": "document"},
    {"prompts": {"query": None, "document": "the "}, "default_prompt_name": None},
]


@pytest.mark.parametrize("values", PROMPT_SETS)
def test_an_empty_prompt_is_a_prompt(
    values: dict[str, Any], hf_folder: HfFolder, tmp_path: Path, texts: list[str]
) -> None:
    folder, _ = hf_folder("bert")
    (folder / SENTENCE_TRANSFORMERS).write_text(json.dumps(values))
    load(folder).save_pretrained(tmp_path / "again")
    theirs = SentenceTransformer(str(folder), device="cpu")
    for place in (folder, tmp_path / "again"):
        ours = load(place)
        assert distance(ours.encode_document(texts), theirs.encode_document(texts)) <= EQUAL
        if values["prompts"]["query"] is not None:
            assert distance(ours.encode_query(texts), theirs.encode_query(texts)) <= EQUAL
        assert ours.tokenizer.prompts == {k: v for k, v in values["prompts"].items() if v is not None}
        assert ours.tokenizer.default_prompt == values["default_prompt_name"]


@pytest.mark.parametrize("name", TRANSFORMER_FILES)
def test_the_length_is_found_under_every_name_of_its_file(
    name: str, hf_folder: HfFolder, tmp_path: Path
) -> None:
    folder, _ = hf_folder("bert")
    (folder / name).write_text('{"max_seq_length": 7, "do_lower_case": true}')
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = ["THE mole digs under the meadow " * 3]
    load(folder).save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        ours = load(place)
        assert ours.tokenizer.max_length == theirs.max_seq_length == 7
        assert distance(ours.vectors(texts).array, theirs.encode(texts)) <= EQUAL


@pytest.mark.parametrize("where", ["config", "tokenizer"])
def test_long_texts_are_cut_on_the_side_the_folder_says(
    where: str, hf_folder: HfFolder, tmp_path: Path
) -> None:
    folder, _ = hf_folder("bert")
    (folder / TRANSFORMER).write_text('{"max_seq_length": 7}')
    if where == "config":
        change_json(folder / "tokenizer_config.json", truncation_side="left")
    else:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        backend.enable_truncation(9, direction="left")
        backend.save(str(folder / "tokenizer.json"))
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = ["the mole digs tunnels under the meadow and owls hunt"]
    load(folder).save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        rows, _ = load(place).tokenizer.rows(texts)
        assert rows == theirs.tokenizer(texts, truncation=True, max_length=7)["input_ids"]
        with pytest.warns(TruncationWarning, match="1 of 1 texts were cut at 7 tokens"):
            vectors = load(place).encode(texts)
        assert distance(vectors, theirs.encode(texts)) <= EQUAL


@pytest.mark.parametrize("key", ["processor_kwargs", "tokenizer_args"])
def test_a_length_that_was_set_wins_over_the_arguments_of_the_tokenizer(
    key: str, hf_folder: HfFolder, tmp_path: Path
) -> None:
    folder, _ = hf_folder("bert")
    (folder / TRANSFORMER).write_text(json.dumps({key: {"model_max_length": 9}}))
    model = load(folder)
    model.max_seq_length = 20
    model.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").max_length == 20
    assert SentenceTransformer(str(tmp_path / "again"), device="cpu").max_seq_length == 20


def test_a_model_without_files_of_its_tokenizer_keeps_the_side_it_cuts(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    model.tokenizer.truncation_side = "left"
    model.save_pretrained(tmp_path / "again")
    texts = ["the mole digs tunnels under the meadow and owls hunt " * 4]
    assert load(tmp_path / "again").tokenizer.rows(texts) == model.tokenizer.rows(texts)


@pytest.mark.parametrize(
    ("kind", "more", "change"),
    [
        ("mistral", {"layer_types": ["sliding_attention"] * 3}, lambda spec: spec.first_layers(1)),
        (
            "modernbert",
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            lambda spec: to_rope(spec, {}, 333.0, 64)[0],
        ),
        (
            "gte",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            lambda spec: to_rope(spec, {}, 333.0, 64)[0],
        ),
    ],
)
def test_no_old_key_of_a_config_wins_over_what_is_written(
    kind: str, more: dict[str, Any], change: Callable[[EncoderSpec], EncoderSpec], make_model: MakeModel,
    tmp_path: Path,
) -> None:  # fmt: skip
    source = {**CONFIGS, **ENCODERS}[kind] | more
    spec = change(family_of(source).read_config(source))
    encoder = Encoder(spec)
    randomise(encoder, 0)
    parts = replace(make_model().parts(), spec=spec, state=dict(encoder.state_dict()), source=source)
    write_folder(tmp_path / "model", parts)
    assert read_config(tmp_path / "model") == spec


@pytest.mark.parametrize("key", ["processor_kwargs", "tokenizer_args"])
def test_arguments_of_the_tokenizer_are_kept(key: str, hf_folder: HfFolder, tmp_path: Path) -> None:
    folder, _ = hf_folder("bert")
    change_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    (folder / TRANSFORMER).write_text(json.dumps({key: {"model_max_length": 9, "do_lower_case": False}}))
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = ["The MOLE digs under the meadow", "an owl hunts " * 4]
    load(folder).save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        assert load(place).tokenizer.max_length == 9
        assert distance(load(place).vectors(texts).array, theirs.encode(texts)) <= EQUAL


def test_the_encoder_may_lie_in_a_folder_of_its_own(
    hf_folder: HfFolder, tmp_path: Path, texts: list[str], run: Run
) -> None:
    folder, _ = hf_folder("bert")
    inside = folder / "0_Transformer"
    inside.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(inside / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inside.name
    (folder / "modules.json").write_text(json.dumps(modules))
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert distance(load(folder).encode(texts), theirs) <= EQUAL
    load(folder).save_pretrained(tmp_path / "again")
    assert distance(load(tmp_path / "again").encode(texts), theirs) <= EQUAL
    code, shown, _ = run("inspect", folder, "--json")
    assert code == 0
    assert json.loads(shown)["bytes_on_disk"] == (inside / "model.safetensors").stat().st_size
    code, shown, _ = run("push", folder, "me/moles", "--dry-run", "--json")
    assert code == 0
    assert "0_Transformer/model.safetensors" in json.loads(shown)["files"]


@pytest.mark.parametrize(
    ("similarity", "made_for"), [("dot", "dot product"), ("euclidean", "euclidean distance")]
)
def test_vectors_that_were_not_of_length_1_are_said_once_and_stay_so_named(
    similarity: str, made_for: str, hf_folder: HfFolder, tmp_path: Path
) -> None:
    folder, _ = hf_folder("bert")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    (folder / SENTENCE_TRANSFORMERS).write_text(json.dumps({"similarity_fn_name": similarity}))
    with pytest.warns(UserWarning, match=f"made for the {made_for} of vectors that are not of length 1"):
        model = load(folder)
    model.save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "again").similarity_fn_name == similarity


def test_keys_that_are_not_read_are_named_once(hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("bert")
    (folder / TRANSFORMER).write_text('{"query_length": 32, "max_seq_length": 20}')
    with pytest.warns(UserWarning, match="not read, and without effect here: query_length"):
        load(folder)
    (folder / TRANSFORMER).unlink()
    change_json(folder / "1_Pooling" / "config.json", temperature=2)
    with pytest.warns(UserWarning, match="without effect here: temperature"):
        load(folder)


@pytest.mark.parametrize("dim", [1, 8, 16, 99])
def test_truncate_dim_cuts_as_in_sentence_transformers(
    dim: int, hf_folder: HfFolder, texts: list[str], tmp_path: Path
) -> None:
    folder, _ = hf_folder("bert")
    (folder / SENTENCE_TRANSFORMERS).write_text(json.dumps({"truncate_dim": dim}))
    model = load(folder)
    model.save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        theirs = SentenceTransformer(str(place), device="cpu").encode(texts, normalize_embeddings=True)
        assert theirs.shape == (len(texts), min(dim, 16))
        assert distance(load(place).encode(texts), theirs) <= EQUAL
    for wrong in (0, "8", True, 2.5):
        (folder / SENTENCE_TRANSFORMERS).write_text(json.dumps({"truncate_dim": wrong}))
        with pytest.raises(UserError, match="truncate_dim must be a count of coordinates"):
            load(folder)


def test_without_modules_mean_pooling_is_assumed_aloud(hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("bert")
    (folder / "modules.json").unlink()
    with pytest.warns(UserWarning, match="mean pooling is assumed"):
        assert read_folder(folder).pooling.name == "mean"


# ---- bad folders ---------------------------------------------------------------------------------


def change_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_modules(kinds: list[str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
        modules = [
            {"path": path, "type": f"sentence_transformers.models.{kind}"}
            for path, kind in zip(paths, kinds, strict=True)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))

    return damage


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def change(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / name, **changes)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM, WORD = "emb_ln.weight", "embeddings.word_embeddings.weight"
QKV = "encoder.layers.1.attn.Wqkv.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing tensor": (change_tensors(lambda t: t.pop(QKV)), f"tensor '{QKV}' is missing"),
    "no word table": (change_tensors(lambda t: t.pop(WORD)), f"tensor '{WORD}' is missing"),
    "extra tensor": (
        change_tensors(lambda t: t.update({"adapter.weight": torch.ones(2)})),
        r"1 tensors belong to no part of this model: 'adapter\.weight'",
    ),
    "misshapen tensor": (
        change_tensors(lambda t: t.update({QKV: t[QKV][:-1]})),
        rf"tensor '{QKV}' has shape \(47, 16\), expected \(48, 16\)",
    ),
    "NaN": (
        change_tensors(lambda t: t[NORM].__setitem__(3, float("nan"))),
        f"tensor '{NORM}' holds NaN or infinite values",
    ),
    "infinity": (
        change_tensors(lambda t: t[WORD].__setitem__((3, 1), float("-inf"))),
        f"tensor '{WORD}' holds NaN or infinite values",
    ),
    "truncated weights": (truncate, r"model\.safetensors is missing, truncated or damaged"),
    "empty weights": (write("model.safetensors", ""), r"model\.safetensors is missing, truncated or damaged"),
    "no weights": (
        remove("model.safetensors"),
        r"has no model\.safetensors; a pytorch_model\.bin .*--allow-pickle",
    ),
    "only a pickle": (pickled, r"pytorch_model\.bin is a pickle: .* with --allow-pickle"),
    "no config": (remove("config.json"), r"has no config\.json, so it is not a model folder"),
    "broken config": (write("config.json", "{"), r"config\.json is not valid JSON"),
    "config of another sort": (write("config.json", "[]"), r"config\.json holds a list where a dict"),
    "unknown model_type": (
        change("config.json", model_type="albert"),
        "unknown model_type 'albert': the nearest known family is 'bert', and what it lacks is word rows",
    ),
    "no model_type": (write("config.json", "{}"), "unknown model_type None"),
    "broken tokenizer": (write("tokenizer.json", "{"), r"tokenizer\.json is not a readable tokenizer"),
    "no tokenizer": (remove("tokenizer.json"), r"has neither a tokenizer\.json nor a vocabulary file"),
    "small vocabulary": (
        change("config.json", vocab_size=50),
        r"has shape \(130, 16\), expected \(50, 16\)",
    ),
    "a Dense module without a file": (
        change_modules(["Transformer", "Pooling", "Dense", "Normalize"]),
        r"2_Dense/config\.json does not exist",
    ),
    "another module": (
        change_modules(["Transformer", "Pooling", "LSTM", "Normalize"]),
        r"made of Transformer \+ Pooling \+ LSTM \+ Normalize is not supported",
    ),
    "pooling before the encoder": (
        change_modules(["Pooling", "Transformer"]),
        r"made of Pooling \+ Transformer is not supported",
    ),
    "modules of another sort": (write("modules.json", "{}"), r"modules\.json holds a dict where a list"),
    "unsupported pooling": (
        write("1_Pooling/config.json", '{"pooling_mode": ["mean", "median"]}'),
        "pooling 'median' is not supported",
    ),
    "no pooling file": (remove("1_Pooling/config.json"), r"1_Pooling/config\.json does not exist"),
    "a default prompt without a text": (
        write(SENTENCE_TRANSFORMERS, '{"default_prompt_name": "query"}'),
        "the default prompt is 'query', and no prompt has that name",
    ),
    "a prompt that is no text": (
        write(SENTENCE_TRANSFORMERS, '{"prompts": {"query": 1}}'),
        "the prompt 'query' is a int, not a text",
    ),
    "prompts of another sort": (
        write(SENTENCE_TRANSFORMERS, '{"prompts": ["a"]}'),
        "prompts must be texts by name, not a list",
    ),
    "half the settings": (write(SENTENCE_TRANSFORMERS, "{"), "transformers.json is not valid JSON"),
    "a model of another kind": (
        write(SENTENCE_TRANSFORMERS, '{"model_type": "SparseEncoder"}'),
        "this is a SparseEncoder, not a model that makes one vector",
    ),
    "a similarity of another kind": (
        write(SENTENCE_TRANSFORMERS, '{"similarity_fn_name": "maxsim"}'),
        "similarity_fn_name 'maxsim' is not known",
    ),
    "dims of another sort": (
        write(SENTENCE_TRANSFORMERS, '{"matryoshka_dims": [0]}'),
        "matryoshka_dims must be a list of counts",
    ),
    "a length that is none": (
        write(TRANSFORMER, '{"max_seq_length": "long"}'),
        "max_seq_length must be a count of tokens, not 'long'",
    ),
    "a length of nothing": (
        write(TRANSFORMER, '{"max_seq_length": 0}'),
        "max_seq_length must be a count of tokens, not 0",
    ),
    "half the lengths": (write(TRANSFORMER, '{"max_seq'), "sentence_bert_config.json is not valid JSON"),
    "another config": (
        write(TRANSFORMER, '{"config_kwargs": {"hidden_act": "relu"}}'),
        "config_kwargs changes hidden_act of config.json",
    ),
    "another task": (
        write(TRANSFORMER, '{"transformer_task": "fill-mask"}'),
        "transformer_task 'fill-mask' is not supported",
    ),
    "a module with code of its own": (
        write("modules.json", '[{"path": "", "type": "owls.Transformer"}]'),
        "the module owls.Transformer brings code of its own",
    ),
    "a module outside": (
        write("modules.json", '[{"path": "../x", "type": "sentence_transformers.models.Transformer"}]'),
        r"the path '\.\./x' leads out of the folder",
    ),
    "a module without a path": (write("modules.json", '[{"type": "x"}]'), "needs a type and a path"),
    "a module that is not there": (
        write("modules.json", '[{"path": "0_CLIP", "type": "sentence_transformers.models.CLIPModel"}]'),
        "its first module is CLIPModel in 0_CLIP, where no config.json lies",
    ),
    "pooling of another width": (
        change("1_Pooling/config.json", word_embedding_dimension=17),
        "pools vectors of 17 coordinates, the encoder's have 16",
    ),
    "pooling by a number": (
        change("1_Pooling/config.json", pooling_mode=3),
        "pooling_mode must be a name or a list of names",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_sentence(name: str, hf_folder: HfFolder) -> None:
    damage, complaint = DAMAGES[name]
    folder, _ = hf_folder("nomic_bert")
    read_folder(folder)
    damage(folder)
    with pytest.raises(UserError, match=complaint) as error:
        read_folder(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    make_model: MakeModel, backend: Any, tmp_path: Path
) -> None:
    make_model(vocab_size=backend.get_vocab_size() - 1).save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError, match=rf"the tokenizer's ids go up to {backend.get_vocab_size() - 1}, the model has"
    ):
        read_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"widht": 16}, "unknown key 'widht', did you mean 'width'"),
        (
            {"moe": {"layers": [1], "exprts": 4}},
            r"'moe\.exprts', did you mean 'moe\.num_experts'",
        ),
        ({"moe": {"layers": [9]}}, r"layers \(9,\) go beyond the 4 layers"),
        ({"activation": "mish"}, "activation must be 'gelu'"),
    ],
)
def test_a_wrong_key_of_our_own_config_is_named(
    changes: dict[str, Any], complaint: str, moe_model: Embedder, tmp_path: Path
) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    change_json(config, encoder=json.loads(config.read_text())["encoder"] | changes)
    with pytest.raises(UserError, match=rf"config\.json: .*{complaint}"):
        read_folder(tmp_path / "model")


def test_what_is_no_folder_is_said_to_be_none(tmp_path: Path) -> None:
    for read in (read_folder, load):
        with pytest.raises(UserError, match="nowhere does not exist"):
            read(tmp_path / "nowhere")
        with pytest.raises(UserError, match="so it is not a model folder"):
            read(tmp_path)


def test_a_name_out_of_reach_is_neither_a_folder_nor_on_the_hub() -> None:
    with pytest.raises(UserError, match="nobody/nothing is neither a folder nor reachable") as error:
        Embedder.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)


def test_a_run_folder_stands_for_its_model(moe_model: Embedder, tmp_path: Path) -> None:
    moe_model.save_pretrained(tmp_path / "run" / "model")
    assert load(tmp_path / "run").space() == moe_model.space()


# ---- saving is whole or not at all ---------------------------------------------------------------


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failure_in_the_middle_keeps_the_old_folder(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_model(seed=1), make_model(seed=2)
    old.save_pretrained(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "save_file", full_disk)
        with pytest.raises(UserError, match=r"cannot write .*model: .*No space left on device"):
            new.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").space() == old.space()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    new.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").space() == new.space()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_up_under_the_weights_is_a_clear_sentence(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """The operating system refuses large files here, so the weight writer itself meets the error."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = make_model(width=64, ffn_width=128)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*model: .*File too large"):
            model.save_pretrained(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_behind_is_in_nobodys_way(make_model: MakeModel, tmp_path: Path) -> None:
    for name in (".model.new", ".model.old"):
        (tmp_path / name / "1_Pooling").mkdir(parents=True)
    model = make_model()
    for _ in range(2):
        model.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").space() == model.space()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_is_a_clear_sentence(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/model"):
        make_model().save_pretrained(tmp_path / "file" / "model")
