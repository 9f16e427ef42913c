"""What a study stores about a trial besides its point and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from conr_ray.searching.space import SearchSpace

# Name of the trial's directory, and hash of its config.
TRIAL_ID, CONFIG_HASH = "trial_id", "config_hash"
# Why it failed.
FAILURE = "failure"
# Number of the failed trial that it is another attempt of, in the same directory.
RETRY_OF = "retry_of"
# Of a leg of a population: the number of exchanges before it, its member, and the number of the
# trial that it continues.
GENERATION, MEMBER, PARENT = "generation", "member", "parent"


@dataclass(frozen=True)
class Leg:
    """Where a leg begins and ends.

    Attributes:
        parent: number of the trial whose state it continues; None for the first legs.
        begin: epochs trained at its start, 0 without a parent.
        end: epochs trained at its end.
    """

    parent: int | None
    begin: int
    end: int

    @classmethod
    def of(cls, trial: FrozenTrial | optuna.Trial, space: SearchSpace) -> Leg:
        """The leg of a trial; without a population it begins at 0 and has no parent."""
        ends = [*space.exchanges, space.config().schedule.epochs]
        generation = trial.user_attrs.get(GENERATION, 0)
        begin = ends[generation - 1] if generation else 0
        return cls(trial.user_attrs.get(PARENT), begin, ends[generation])


def without_retried(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Trials without the failed ones that have another attempt among them."""
    trials = list(trials)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if trial.number not in retried]
