"""Alarms: what goes wrong in a run, told from its metrics alone, with the cause and the remedy in words.

Every rule looks at lines of ``metrics.jsonl`` and gives a message or nothing. An alarm that is missed costs a run; one
that cries wolf costs the trust in all others: each rule waits for enough lines and asks for more than noise can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vitembed.pretrain.watch import encoder_rules, training_rules
from vitembed.pretrain.watch.history import Context, History
from vitembed.pretrain.watch.metrics_file import Line

REARM_SHARE = 0.1
"""Share of the run after which an alarm that had gone may sound again."""
JUDGE_SHARE = 0.005
"""Share of the run after which the rules are asked again."""

RULES: dict[str, Callable[[History, Context], str | None]] = {
    rule.__name__: rule
    for rule in (
        encoder_rules.collapse,
        encoder_rules.views_not_found,
        encoder_rules.views_too_easy,
        encoder_rules.worse_than_start,
        training_rules.loss_flat,
        training_rules.loss_rising,
        training_rules.gradient_explodes,
        training_rules.always_clipped,
        training_rules.waits_for_images,
        training_rules.teacher_equals_student,
    )
}
"""Code of each alarm, and what tells it."""


@dataclass(frozen=True)
class Alarm:
    """Something that goes wrong."""

    code: str
    """One word for programs, such as ``collapse``."""
    step: int
    message: str
    """Cause, then what to do."""


@dataclass
class Alarms:
    """Feeds on the lines of a run and tells each alarm once: again only if it had gone for a tenth of the run.

    What it tells follows from the lines alone, so a resumed run that is fed the old lines goes on as if nothing had
    happened.
    """

    context: Context
    history: History = field(default_factory=History)
    last_on: dict[str, float] = field(default_factory=dict)
    """Progress at which each alarm's condition held last."""
    judged_at: float = -1.0
    """Progress at which the rules were asked last."""

    def feed(self, line: Line) -> list[Alarm]:
        """The alarms that begin with this line."""
        looked = self.history.add(line)
        # Rules read the whole history: in a long run they are asked now and then, and at every point looked at.
        if not looked and line["progress"] < min(1.0, self.judged_at + JUDGE_SHARE):
            return []
        self.judged_at = line["progress"]
        new = []
        for code, rule in RULES.items():
            message = rule(self.history, self.context)
            if message is None:
                continue
            if code not in self.last_on or line["progress"] - self.last_on[code] > REARM_SHARE:
                new.append(Alarm(code, line["step"], message))
            self.last_on[code] = line["progress"]
        return new

    @property
    def active(self) -> list[str]:
        """Codes whose condition held when the rules were asked last."""
        return [code for code, progress in self.last_on.items() if progress == self.judged_at]
