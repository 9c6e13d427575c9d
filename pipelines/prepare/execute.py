"""Runs many independent tasks on Ray Data, and gives their results as they come."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pipelines.errors import EspanError
from pipelines.system.cluster_session import ray_session

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_tasks(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    """Yields (index, `function(tasks[index])`) for every task as it ends; each call has one core.

    A task lost with its worker or machine runs again: `function` must come to the same result when repeated.

    Raises:
        EspanError: a task raised it; tasks not yet begun are not run.
    """
    if not tasks:
        return
    ray_session()
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that the bars are off

    def call(row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = pickle.dumps(function(pickle.loads(row["task"])))
        except EspanError as error:  # Ray Data would print its traceback and wrap it several times
            return {"index": row["index"], "result": b"", "refusal": str(error)}
        return {"index": row["index"], "result": result, "refusal": ""}

    items = [{"index": index, "task": pickle.dumps(task)} for index, task in enumerate(tasks)]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(call, num_cpus=1)
    for row in results.iter_rows():
        if row["refusal"]:
            raise EspanError(row["refusal"])
        yield row["index"], pickle.loads(row["result"])
