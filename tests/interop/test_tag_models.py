"""Models whose experts are chosen by a tag in other programs: told once for all texts, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import MakeModel
from moembed.embedder import Embedder
from moembed.export.nomic import to_nomic
from moembed.export.onnx.export import export_onnx
from moembed.types import UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    parts = make_model(prompts={}, position="rope", ffn_bias=False, attention_bias=False).parts()
    router = {"kind": "tag", "top_k": 1, "tags": ["de", "en"], "default_tag": "en"}
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig.model_validate({"router": router}))
    for name, tensor in state.items():
        if name.endswith("_EFD"):
            tensor[1] *= 0.5
    return Embedder(replace(parts, spec=spec, state=state)).eval()


def test_sentence_transformers_gives_our_vectors_of_one_tag(
    model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    model.save_pretrained(tmp_path / "m")
    for tag in ("de", "en"):
        theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu", config_kwargs={"tag": tag})
        np.testing.assert_allclose(theirs.encode(texts), model.encode(texts, tag=tag), atol=1e-5)


def test_without_a_tag_it_is_refused_even_where_there_is_a_default(model: Embedder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"\(known: de, en\), which is no input of transformers: set model"):
        SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(["an owl"])
    other = SentenceTransformer(str(tmp_path / "m"), device="cpu", config_kwargs={"tag": "fr"})
    with pytest.raises(UserError, match="no experts for the tag 'fr'"):
        other.encode(["an owl"])


def test_formats_without_tags_refuse_them_by_name(model: Embedder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the Nomic layout cannot hold this model: .*a router of kind tag"):
        to_nomic(model.parts())
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"the ONNX graph cannot run this model: .*router.kind = 'tag'"):
        export_onnx(model.parts(), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
