"""The keys of a report stage: there are none."""

from __future__ import annotations

from pipelines.recipe.keys.section import ALL_EARLIER, StageKeys


class ReportKeys(StageKeys):
    """The keys below `report:`; there are none."""

    def references(self) -> tuple[str, ...]:
        """Everything before it."""
        return (ALL_EARLIER,)
