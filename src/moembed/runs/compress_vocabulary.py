"""`moembed compress-vocabulary`: a model folder with its table of words in another form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moembed.files import require_replaceable
from moembed.folder.bases import base_name, read_base
from moembed.folder.write import write_folder
from moembed.model.words.compressors import COMPRESSORS
from moembed.report.card import write_card
from moembed.weights.compress_vocabulary import Compressed, VocabularyConfig, compress_vocabulary


@dataclass(frozen=True, slots=True)
class CompressedModel:
    """What was written: the table of words, and the bytes of the file of the encoder's weights.

    ``needs_training``: the form says so little of a given matrix that the model is to be trained on.
    """

    out: str
    table: Compressed
    file_bytes: int
    needs_training: bool


def compress_model(
    model: str, out: str | Path, config: VocabularyConfig, overwrite: bool = False
) -> CompressedModel:
    """Write ``model`` to the folder ``out`` with a compressed table of words; every other tensor stays.

    Raises:
        UserError: as `moembed.weights.compress_vocabulary.compress_vocabulary`; a folder that exists.
    """
    require_replaceable(Path(out), overwrite)
    parts, facts = compress_vocabulary(read_base(model), config)
    write_folder(Path(out), parts)
    write_card(Path(out), str(out), base_name(model))
    size = (Path(out) / "model.safetensors").stat().st_size
    return CompressedModel(str(out), facts, size, COMPRESSORS[config.method].by_training)
