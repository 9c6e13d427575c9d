"""The trials of a search."""

from __future__ import annotations

import json
import random

from tuning.study.keys import with_changes
from tuning.study.trial import Trial
from tuning.tune.keys import TuneKeys


def trials_of(keys: TuneKeys, seed: int) -> list[Trial]:
    """Returns the trials of this search; `seed` decides which, if not all are tried."""
    chosen = keys.combinations()
    if keys.trials is not None and keys.trials < len(chosen):
        picked = random.Random(f"trials {seed}").sample(range(len(chosen)), keys.trials)
        chosen = [chosen[i] for i in sorted(picked)]
    return [
        Trial(
            name=f"trial-{number:03d}",
            seed=seed,
            label={key: json.dumps(value) for key, value in changes.items()},
            train=with_changes(keys.train, changes, "space"),
            model="",
        )
        for number, changes in enumerate(chosen)
    ]
