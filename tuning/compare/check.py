"""What can be said of a comparison before anything starts."""

from __future__ import annotations

from tuning.compare.trials import trials_of
from tuning.study.check import study_check

CHECK = study_check(trials_of)
