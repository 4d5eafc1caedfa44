"""How well the words of held-out texts are guessed, before training and on the way."""

from __future__ import annotations

from moembed.training.masked_lm.objective import OBJECTIVES, Guesses, measure, prepare
from moembed.training.masked_lm.task import MaskedLMTask
from moembed.training.task import Look, Moment, Monitor

_STREAM = 12  # of random numbers, drawn from the seed


class HeldOutGuesses(Monitor):
    """Loss and accuracy by language on the sequences held out, single tokens masked, always the same ones."""

    name = "held_out"

    def __init__(self, task: MaskedLMTask) -> None:
        self.task, self.config = task, task.config.held_out

    def begin(self, step: int) -> Look:
        return Look({} if step else {f"{key}_before": value for key, value in self.found().items()})

    def due(self, moment: Moment) -> bool:
        return moment.step % self.config.every == 0 or moment.last

    def look(self, moment: Moment) -> Look:
        return Look(self.found())

    def found(self) -> dict[str, dict[str, float]]:
        """Loss in nats and accuracy of every language."""
        task, plan = self.task, OBJECTIVES["mlm"].plan(self.config.mask, self.config.mask)
        assert isinstance(task.module, Guesses)
        loss, accuracy = {}, {}
        for part in task.parts:
            language = part.language
            numbers = task.world.share(len(language) - part.num_train)
            rows = {i: language.sequence(part.num_train + i) for i in numbers}
            key = [task.config.seed, _STREAM]
            chunks = prepare(rows, task.vocabulary, plan, task.config.chunk_tokens, key)
            found = measure(task.module, chunks, task.precision, task.world)
            loss[language.name], accuracy[language.name] = (round(value, 5) for value in found)
        return {"held_out": loss, "held_out_accuracy": accuracy}
