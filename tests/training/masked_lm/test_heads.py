"""Heads are read from the checkpoints they come with, compute what their makers compute, and are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import HfFolder, MakeModel, randomise
from moembed.embedder import Embedder
from moembed.folder.read import read_folder
from moembed.losses.mlm import masked_lm_loss
from moembed.packing import offsets
from moembed.training.masked_lm.heads import HEAD_FILE, UNREACHABLE, Heads, read_heads, write_heads
from moembed.types import UserError


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_the_loss_is_that_of_transformers(kind: str, hf_folder: HfFolder, texts: list[str]) -> None:
    folder, theirs = hf_folder(kind, head="ForMaskedLM")
    model = Embedder(read_folder(folder)).eval()
    heads = Heads(model.encoder.spec, model.tokenizer.backend.get_vocab_size())
    assert sorted(read_heads(folder, heads)) == sorted(name for name, _ in heads.named_parameters())
    batch = model.tokenizer.batch([texts[0]])
    with torch.no_grad():
        logits = theirs(input_ids=batch.token_T[None]).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, batch.token_T, reduction="sum")
        hidden, _ = model.encoder(batch.token_T, batch.length_B)
        state_TD = heads.mlm(hidden[model.encoder.spec.num_layers])
        loss, right = masked_lm_loss(state_TD, batch.token_T, model.encoder.word.weight, heads.mlm.bias_V)
    torch.testing.assert_close(loss, expected)
    assert int(right) == int((logits.argmax(-1) == batch.token_T).sum())


def test_a_base_without_a_head_gives_none(hf_folder: HfFolder, make_model: MakeModel) -> None:
    config = make_model(vocab_size=130).encoder.spec
    heads = Heads(config, pieces=120)
    assert read_heads(hf_folder("bert")[0], heads) == []
    assert set(heads.mlm.bias_V.tolist()) == {0.0, UNREACHABLE}
    assert heads.mlm.bias_V[:120].abs().sum() == 0
    assert heads.mlm.dense.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_what_a_run_wrote_beside_its_model_is_read_again(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    size = model.encoder.spec.vocab_size
    heads = Heads(model.encoder.spec, size, decoder=True)
    randomise(heads, seed=3)
    write_heads(tmp_path, heads)
    again = Heads(model.encoder.spec, size, decoder=True)
    read_heads(tmp_path / "model", again)
    for name, tensor in heads.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    plain = Heads(model.encoder.spec, size)  # a run without a decoder takes what it needs
    read_heads(tmp_path / "model", plain)
    assert torch.equal(plain.mlm.bias_V, heads.mlm.bias_V)
    padded = Heads(model.encoder.spec.with_vocabulary(size + 2), size)
    read_heads(tmp_path / "model", padded)
    assert padded.mlm.bias_V[-2:].tolist() == [UNREACHABLE] * 2
    assert torch.equal(padded.mlm.bias_V[:-2], heads.mlm.bias_V)


def test_a_head_of_another_width_or_damaged_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    heads = Heads(make_model().encoder.spec, 9)
    save_file({"mlm.dense.weight": torch.zeros(3, 3)}, tmp_path / HEAD_FILE)
    with pytest.raises(UserError, match=r"'mlm.dense.weight' has shape \(3, 3\), expected \(16, 16\)"):
        read_heads(tmp_path, heads)
    (tmp_path / HEAD_FILE).write_bytes(b"not tensors")
    with pytest.raises(UserError, match="its heads cannot be read"):
        read_heads(tmp_path, heads)


@pytest.mark.parametrize("position", ["absolute", "rope"])
def test_the_decoder_sees_the_vector_and_its_own_sequence_alone(position: str, make_model: MakeModel) -> None:
    config = make_model(position=position).encoder.spec
    heads = Heads(config, config.vocab_size, decoder=True)
    randomise(heads, seed=1)
    assert heads.decoder is not None
    lengths = (3, 5)
    generator = torch.Generator().manual_seed(0)
    embedded_TD = torch.randn(8, 16, generator=generator)
    vector_BD = torch.randn(2, 16, generator=generator)
    both = heads.decoder(embedded_TD, vector_BD, lengths)
    for number, (start, end) in enumerate(zip(offsets(lengths), offsets(lengths)[1:], strict=False)):
        alone = heads.decoder(embedded_TD[start:end], vector_BD[number : number + 1], (end - start,))
        torch.testing.assert_close(alone, both[start:end])
    changed = heads.decoder(embedded_TD, vector_BD.roll(1, 0), lengths)
    assert (changed - both).abs().amin(0).amax() > 1e-3
