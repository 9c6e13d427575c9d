"""The trials of a comparison."""

from __future__ import annotations

from tuning.compare.keys import CompareKeys, slug
from tuning.study.keys import with_changes
from tuning.study.trial import Trial


def trials_of(keys: CompareKeys, seed: int) -> list[Trial]:
    """Returns every variant with every seed, turn by turn: an unfinished study is comparable, too."""
    trials = []
    for turn in range(max(len(keys.seeds_for(name)) for name in keys.variants)):
        for name, changes in keys.variants.items():
            # What is not trained has no seed: it is scored once.
            seeds = keys.seeds_for(name) if changes is not None else keys.seeds[:1]
            if turn >= len(seeds):
                continue
            train = None if changes is None else with_changes(keys.train, changes, f"variants.{name}")
            model = keys.train.model if isinstance(keys.train.model, str) else ""
            label = {"variant": name}
            trials.append(Trial(f"{slug(name)}-{seeds[turn]}", seeds[turn], label, train, model))
    return trials
