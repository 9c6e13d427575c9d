"""The kinds of stage of this package, which the `espan` command adds to those of `pipelines.kinds`."""

from __future__ import annotations

from pipelines.kinds import StageKind

TUNING_KINDS = {
    kind.name: kind
    for kind in (
        StageKind(
            "tune",
            keys="tuning.tune.keys:TuneKeys",
            check="tuning.tune.check:CHECK",
            run="tuning.tune.run:run",
        ),
        StageKind(
            "compare",
            keys="tuning.compare.keys:CompareKeys",
            check="tuning.compare.check:CHECK",
            run="tuning.compare.run:run",
        ),
    )
}
