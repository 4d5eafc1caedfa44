"""What a recipe that trains on texts, and not on pairs, will do: pretraining and distillation."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from moembed.console import say
from moembed.data.text import read_texts
from moembed.folder.bases import locate_base
from moembed.runs.distill import DistillConfig, build, open_teacher, open_texts
from moembed.runs.dry_run import Plan, common_facts, length_facts
from moembed.runs.inputs import require_new_run
from moembed.runs.pretrain import PretrainConfig, prepared
from moembed.runs.training_run import model_facts
from moembed.training.distillation.task import sampler_of
from moembed.training.lora import Adapters
from moembed.training.masked_lm.corpus import open_corpus
from moembed.training.masked_lm.task import MaskedLMTask
from moembed.training.parallel import ALONE


def dry_run_pretraining(
    config: PretrainConfig, overwrite: bool = False, resume: bool = False, keep: Path | None = None
) -> Plan:
    """`moembed.runs.dry_run.dry_run` of ``moembed pretrain``: the texts are tokenised too."""
    if not resume:
        require_new_run(Path(config.out), config, overwrite)
    model, heads, head = prepared(locate_base(config.base), config)
    if keep:
        model.save_pretrained(keep)
    with TemporaryDirectory() as place:
        texts = read_texts(config.data, lambda note: say(f"note: {note}"))
        backend = model.tokenizer.backend
        corpus = open_corpus(Path(place), texts, backend, config.sequence_length, config.packed, [])
        task = MaskedLMTask(config, model.train(), heads, corpus, ALONE)
        sources = [
            {"source": part.language.name, "sequences": len(part.language), "trained_on": part.num_train}
            for part in task.parts
        ]
        facts = common_facts("pretraining", config, task, config.steps, task.sampler)
    return {
        **facts,
        "model": f"{model_facts(model, config, config.precision, ALONE)}, {head}",
        "sources": sources,
        "loss": [f"{name}: {share:.0%} of the sequences" for name, share in config.shares.items()],
    }


def dry_run_distillation(
    config: DistillConfig, overwrite: bool = False, resume: bool = False, keep: Path | None = None
) -> Plan:
    """The same for ``task: distillation``. The teacher's vectors are not made."""
    if not resume:
        require_new_run(Path(config.out), config, overwrite)
    teacher = open_teacher(config.teacher)
    model, notes = build(config, teacher)
    if keep:
        model.save_pretrained(keep)
    for note in notes:
        say(note)
    for adapters in Adapters.of(model.encoder, config.lora, config.seed).values():
        say(adapters.sentence)
    texts = open_texts(config, model, teacher)
    sampler = sampler_of(config, texts)
    steps = max(1, round(config.epochs * sampler.total_steps)) if config.epochs else config.steps
    return {
        **length_facts("distillation", config, steps, sampler),
        "model": model_facts(model, config, config.precision, ALONE),
        "sources": [
            {"source": some.name, "texts": len(some.texts), "trained_on": some.num_train} for some in texts
        ],
        "loss": [f"{config.loss.kind} distance from the vectors of {config.teacher}"],
    }
