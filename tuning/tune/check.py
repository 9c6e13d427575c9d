"""What can be said of a search before anything starts."""

from __future__ import annotations

from tuning.study.check import study_check
from tuning.tune.trials import trials_of

CHECK = study_check(trials_of)
