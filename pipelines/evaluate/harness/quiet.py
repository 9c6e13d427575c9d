"""Keeps lm-eval and data sets from writing over what a run shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silences bars and warnings that a user cannot act on; errors are still written."""
    import datasets
    from datasets.utils import are_progress_bars_disabled
    from lm_eval.api import task

    from pipelines.models.loading import quiet_transformers  # not above: a plan loads nothing heavy

    logger = logging.getLogger("lm_eval")
    level, bars_off, bar = logger.level, are_progress_bars_disabled(), task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # lm-eval 0.4.13 shows a bar for each task's requests, whatever it is told, and has no switch for it.
    task.tqdm = partial(bar, disable=True)
    try:
        with quiet_transformers():  # warns that long prompts are longer than a tokenizer says
            yield
    finally:
        task.tqdm = bar
        if not bars_off:
            datasets.enable_progress_bars()
        logger.setLevel(level)
