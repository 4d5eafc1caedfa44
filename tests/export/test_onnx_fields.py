"""The graph computes every field of a spec as the encoder does, with padding on either side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend

from conftest import randomise
from moembed.embedder import Embedder
from moembed.folder.parts import Parts
from moembed.model.encoder import Encoder
from moembed.model.pooling import PoolingConfig
from moembed.model.spec import EncoderSpec
from moembed.packing import pack
from moembed.tokenizer import Tokenizer
from spec_table import SPECS

pytest.importorskip("onnxruntime")
ROWS = [[7, 8, 9, 10, 11, 12, 13, 14], [50], [20, 21, 22, 20]]
EQUAL = 1e-5
COMPUTED = {name: spec for name, spec in SPECS.items() if name != "shared layers"}


@pytest.mark.parametrize("spec", COMPUTED.values(), ids=COMPUTED)
def test_every_field_is_in_the_graph(spec: EncoderSpec, backend: Backend) -> None:
    from onnxruntime import InferenceSession

    from moembed.export.onnx.encoder import build

    encoder = Encoder(spec)
    randomise(encoder, seed=3)
    tokenizer = Tokenizer(backend, spec.max_length)
    parts = Parts(spec, encoder.state_dict(), tokenizer, PoolingConfig("mean"))
    session = InferenceSession(build(parts).SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected_BM = Embedder(parts).eval()(pack(ROWS)).vector_BM.numpy()
    longest = max(map(len, ROWS))
    for left in (False, True):
        gaps = [[0] * (longest - len(row)) for row in ROWS]
        ones = [[1] * len(row) for row in ROWS]
        token_BS, mask_BS = (
            np.array([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])
            for rows in (ROWS, ones)
        )
        found = session.run(["sentence_embedding"], {"input_ids": token_BS, "attention_mask": mask_BS})[0]
        assert np.abs(found - expected_BM).max() <= EQUAL
