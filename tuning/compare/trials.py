"""The trials of a comparison."""

from __future__ import annotations

from tuning.compare.keys import CompareKeys, slug
from tuning.study.keys import with_changes
from tuning.study.trial import Trial


def trials_of(keys: CompareKeys, seed: int) -> list[Trial]:
    """Returns every variant with every seed, seed by seed: an unfinished study is comparable, too."""
    trials = []
    for turn, each in enumerate(keys.seeds):
        for name, changes in keys.variants.items():
            if changes is None and turn > 0:
                continue
            train = None if changes is None else with_changes(keys.train, changes, f"variants.{name}")
            model = keys.train.model if isinstance(keys.train.model, str) else ""
            label = {"variant": name}
            trials.append(Trial(f"{slug(name)}-{each}", each, label, train, model))
    return trials
