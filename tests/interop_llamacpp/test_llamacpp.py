"""llama.cpp itself, through llama-cpp-python, gives our vectors from the files we write.

A random router is near a tie for many tokens, and there any rounding sends a token to another expert: then a
low cosine would say nothing about the export. So the routers here are wide, as trained ones are, and decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from moembed.embedder import Embedder
from moembed.export.gguf.export import export_gguf
from moembed.families.flat import FlatConfig, FlatMoE
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.model.encoder import Encoder, initialise
from moembed.model.pooling import PoolingConfig
from moembed.moe.router import RouterConfig
from moembed.tokenizer import Tokenizer

pytestmark = pytest.mark.interop

LEAST = {"f32": 0.9999, "f16": 0.9999, "bf16": 0.999, "q8_0": 0.999}
MOE = {
    "position": "rope",
    "moe": FlatMoE(layers=(1, 3), num_experts=4, bias="shared", router=RouterConfig(top_k=2, normalize=None)),
}
GATED = {"position": "rope", "gated": True, "activation": "silu", "ffn_bias": False}
TEXTS = """\
Moles dig long tunnels under the meadow.
What does an owl hunt at night?
def read(path): return open(path, encoding="utf-8").read()
The train to Hamburg leaves at 7:05 a.m. from platform 12.
e = m * c ** 2, said Einstein (1905).
UPPER CASE, lower case, MiXeD cAsE
A well-known state-of-the-art method; isn't it?
Der Zug nach Hamburg fährt um sieben Uhr ab.
Die Straße ist wegen Bauarbeiten gesperrt.
Übermorgen öffnet das Café an der Brücke.
La bibliothèque est fermée le dimanche.
Où se trouve la gare la plus proche ?
Le cœur a ses raisons que la raison ne connaît point.
El precio del café subió un 12 % en marzo.
¿Dónde está la estación de autobuses?
Mañana lloverá en toda la península.
Il treno per Firenze è in ritardo di venti minuti.
Perché il cielo è blu?
O avião chegou a São Paulo às três da manhã.
Não há pão na padaria hoje.
De trein naar Utrecht vertrekt over vijf minuten.
Hvor ligger det nærmeste apotek?
Tåget till Malmö är försenat.
Missä on lähin apteekki?
Gdzie jest najbliższa apteka?
Zażółć gęślą jaźń.
Kde je nejbližší lékárna?
Hol van a legközelebbi gyógyszertár?
Unde este cea mai apropiată farmacie?
En yakın eczane nerede?
İstanbul'da hava bugün güneşli.
Nhà thuốc gần nhất ở đâu?
Di mana apotek terdekat?
Duka la dawa lililo karibu liko wapi?
Сколько весит взрослый кит?
Поезд в Москву отправляется в полночь.
Де знаходиться найближча аптека?
Къде е най-близката аптека?
Πού είναι το πλησιέστερο φαρμακείο;
Η βιβλιοθήκη είναι κλειστή την Κυριακή.
איפה נמצא בית המרקחת הקרוב?
הרכבת לחיפה מאחרת.
أين أقرب صيدلية؟
القطار إلى القاهرة متأخر.
نزدیک‌ترین داروخانه کجاست؟
東京の天気は晴れです。
フクロウは夜に何を狩りますか？
图书馆星期天不开门。
最近的药店在哪里？
უახლოესი აფთიაქი სად არის?
Որտե՞ղ է մոտակա դեղատունը։
ร้านขายยาที่ใกล้ที่สุดอยู่ที่ไหน
Emoji 🦉 hunt 🐭 at night 🌙!
   spaces   and	tabs   everywhere
x
""".splitlines()
# BERT drops non-spacing marks, llama.cpp drops all of them and the vowels of Hangul syllables
ACCENTS = """\
가장 가까운 약국은 어디에 있나요?
올빼미는 밤에 무엇을 사냥합니까?
निकटतम दवा की दुकान कहाँ है?
அருகிலுள்ள மருந்தகம் எங்கே உள்ளது?
""".splitlines()

Embed = Callable[[Path, Sequence[str]], tuple[np.ndarray, list[list[int]]]]


@pytest.fixture(scope="session")
def llama() -> Embed:
    """A file and texts -> the vectors and token ids of llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp")

    def embed(path: Path, texts: Sequence[str]) -> tuple[np.ndarray, list[list[int]]]:
        model = llama_cpp.Llama(str(path), embedding=True, n_ctx=0, n_threads=1, verbose=False)
        vectors = np.array([model.embed(text, normalize=True) for text in texts])
        tokens = [model.tokenize(text.encode()) for text in texts]
        model.close()
        return vectors, tokens

    return embed


def wordpiece(minilm: Path) -> Backend:
    return read_folder(minilm).tokenizer.backend


def unigram() -> Backend:
    """What XLM-RoBERTa has, with sentencepiece's own character map, learnt from the texts above."""
    sentencepiece = pytest.importorskip("sentencepiece")
    file = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXTS + ACCENTS) * 4), model_writer=file, vocab_size=600, minloglevel=2,
        hard_vocab_limit=False, character_coverage=0.98, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    from sentencepiece import sentencepiece_model_pb2

    learnt = sentencepiece_model_pb2.ModelProto.FromString(file.getvalue())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(piece, 0.0) for piece in special] + [(p.piece, p.score) for p in learnt.pieces[3:]]
    made = Backend(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    made.add_special_tokens([*special, "<mask>"])
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(learnt.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def random_parts(backend: Backend, pooling: str = "mean", **changes: Any) -> Parts:
    values = {"width": 256, "num_layers": 4, "num_heads": 4, "ffn_width": 512}
    values |= {"vocab_size": backend.get_vocab_size(), "max_positions": 128, "norm_eps": 1e-5}
    spec = FlatConfig.model_validate(values | changes).spec()
    encoder = Encoder(spec)
    initialise(encoder, std=0.05)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.ndim == 1:  # neither biases nor norms at their neutral values
                parameter.normal_(float("norm" in name and "weight" in name), 0.1, generator=generator)
            elif ".router." in name:
                parameter.normal_(0, 0.5, generator=generator)
    tokenizer = Tokenizer(backend, spec.max_length)
    return Parts(spec, encoder.state_dict(), tokenizer, PoolingConfig(pooling))


def agreement(llama: Embed, parts: Parts, path: Path, texts: Sequence[str] = TEXTS) -> np.ndarray:
    """The cosine between llama.cpp's vector and ours for every text; the tokens must be the same."""
    vectors, tokens = llama(path, texts)
    assert tokens == parts.tokenizer.rows(texts)[0]
    assert len(texts) >= 50
    return (vectors * Embedder(parts).eval().encode(texts)).sum(1)


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(
    ("changes", "architecture"),
    [(MOE, "nomic-bert-moe"), (GATED, "nomic-bert"), ({"position": "rope"}, "nomic-bert-moe"), ({}, "bert")],
    ids=["experts", "gated", "rotary", "absolute"],
)
def test_llamacpp_gives_our_vectors(
    llama: Embed, minilm: Path, tmp_path: Path, changes: dict[str, Any], architecture: str, kind: str
) -> None:
    parts = random_parts(wordpiece(minilm), **changes)
    facts = export_gguf(parts, tmp_path / "a.gguf", kind, fold_expert_bias=True)
    assert facts["architecture"] == architecture
    assert agreement(llama, parts, tmp_path / "a.gguf").min() > LEAST[kind]


@pytest.mark.parametrize("kind", LEAST)
def test_llamacpp_gives_the_vectors_of_minilm(llama: Embed, minilm: Path, tmp_path: Path, kind: str) -> None:
    parts = read_folder(minilm)
    export_gguf(parts, tmp_path / "a.gguf", kind)
    assert agreement(llama, parts, tmp_path / "a.gguf").min() > LEAST[kind]


@pytest.mark.parametrize("changes", [MOE | {"pooling": "cls"}, {"position_offset": 2}], ids=["rope", "xlm-r"])
def test_llamacpp_reads_sentencepiece_unigrams(llama: Embed, tmp_path: Path, changes: dict[str, Any]) -> None:
    parts = random_parts(unigram(), **changes)
    export_gguf(parts, tmp_path / "a.gguf", "f32", fold_expert_bias=True)
    assert agreement(llama, parts, tmp_path / "a.gguf", TEXTS + ACCENTS).min() > LEAST["f32"]


def test_llamacpp_drops_an_expert_bias_that_is_not_folded(llama: Embed, minilm: Path, tmp_path: Path) -> None:
    """What the export measures is what llama.cpp shows."""
    parts = random_parts(wordpiece(minilm), **MOE)
    for fold, low, high in ((False, 0.0, 0.999), (True, 0.9999, 1.1)):
        facts = export_gguf(parts, tmp_path / "a.gguf", "f32", fold)
        cosine = agreement(llama, parts, tmp_path / "a.gguf")
        assert low < cosine.min() < high
        assert low < facts["min_cosine"] < high
        assert 1 - facts["mean_cosine"] == pytest.approx(1 - cosine.mean(), rel=0.5, abs=1e-5)


@pytest.mark.parametrize("text", [*ACCENTS, "x" * 101, "the token [MASK]"])
def test_llamacpp_reads_a_few_texts_differently(
    llama: Embed, minilm: Path, tmp_path: Path, text: str
) -> None:
    """The known differences of its WordPiece, which docs/gguf.md lists: what fails here can go there."""
    parts = read_folder(minilm)
    export_gguf(parts, tmp_path / "a.gguf", "q8_0")
    _, tokens = llama(tmp_path / "a.gguf", [text])
    assert tokens != parts.tokenizer.rows([text])[0]
