"""Experts that the router no longer chooses."""

from __future__ import annotations

from typing import Any

from moembed.training.task import Look, Moment, Monitor

STARVED = 0.1  # an expert with less than this share of 1/E ...
STARVED_STEPS = 100  # ... for so many steps in a row is as good as dead


class DeadExpertAlarm(Monitor):
    """Finds experts that get next to nothing for many steps; each is told of once.

    Routers that do not learn are left out: an expert waits for texts of its tag, and nothing can change that.
    """

    name = "dead_experts"

    def __init__(self, advice: str) -> None:
        self.advice = advice  # which keys of the recipe help
        self.steps: dict[tuple[int, int], int] = {}  # (layer, expert) -> steps in a row

    def due(self, moment: Moment) -> bool:
        return bool(moment.terms.router)

    def look(self, moment: Moment) -> Look:
        """Sentences about the experts that are found dead at this step."""
        found = []
        for part in filter(lambda part: part.learned, moment.terms.router):
            for expert, load in enumerate(part.load_E.tolist()):
                key = part.layer, expert
                starved = load < STARVED / len(part.count_E)
                self.steps[key] = self.steps.get(key, 0) + 1 if starved else 0
                if self.steps[key] == STARVED_STEPS:
                    found.append(
                        f"warning: expert {expert} of layer {part.layer} is dying: for {STARVED_STEPS} steps "
                        f"it had less than a tenth of its fair share; {self.advice}"
                    )
        return Look(sentences=found)

    def state_dict(self) -> dict[str, Any]:
        return {"hungry": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["hungry"]
