"""Which tasks of lm-eval are run: found by name, and loaded with their data before any prompt is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError, InvalidKeyError, nearest, one_line
from pipelines.evaluate.harness.quiet import quiet_lm_eval
from pipelines.recipe.keys.harness import TASK_LISTS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

Loaded = dict[str, Any]
"""What lm-eval's `TaskManager.load` returns: tasks and groups by name."""


def task_manager(
    include: str | None, names: Sequence[str] = (), *, builtin: bool | None = None
) -> TaskManager:
    """Returns lm-eval's index of tasks: those of a folder of YAML files, before its own of the same name.

    names: which are asked for; builtin: whether lm-eval's own, whose index takes seconds to read, are known;
    None: unless the folder has all the names.
    """
    from lm_eval.tasks import TaskManager

    with quiet_lm_eval():
        if builtin is None and include is not None and names:
            own = TaskManager(include_path=include, include_defaults=False)
            # A group or a tag may stand for tasks of lm-eval's.
            builtin = not set(names) <= set(own.all_subtasks)
            if not builtin:
                return own
        return TaskManager(include_path=include, include_defaults=builtin is not False)


def expanded(names: Sequence[str]) -> list[str]:
    """Returns task names, the lists of this package replaced by what they stand for; none twice."""
    return list(dict.fromkeys(each for name in names for each in TASK_LISTS.get(name, (name,))))


def check_names(names: Sequence[str], manager: TaskManager) -> None:
    """Refuses a name that neither lm-eval nor the folder knows.

    Raises:
        InvalidKeyError: `harness.tasks.N`, with the name most like it.
    """
    known = manager.all_tasks
    for number, name in enumerate(names):
        if name not in TASK_LISTS and name not in known:
            where = f"harness.tasks.{number}"
            raise InvalidKeyError(
                where,
                f"'{name}' is no task, group or tag of lm-eval's; {len(known):,} names are known",
                nearest(name, [*TASK_LISTS, *known]),
            )


def load_tasks(
    names: Sequence[str],
    manager: TaskManager,
    *,
    fewshot: int | None,
    advance: Callable[[], None] = lambda: None,
) -> Loaded:
    """Loads tasks with their data.

    fewshot: examples before each question, unless a task has none by its own rule; None: as each task says;
    advance: is called when one of `names`, as `expanded`, is loaded.

    Raises:
        EspanError: a task's data is not at hand, with how to bring it, or a task cannot be built.
    """
    loaded: Loaded = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in expanded(names):
        try:
            with quiet_lm_eval():
                found: Any = manager.load([name])
        except Exception as error:  # whatever data sets and the tasks' own code raise
            raise EspanError(_not_at_hand(name, error)) from error
        for part in loaded:
            loaded[part] |= found[part]
        advance()
    for task in loaded["tasks"].values():
        # As lm-eval's own command does: a task that says 0 keeps it.
        own = task.get_config("num_fewshot")
        if own is None or (fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


FEWSHOT_SEED = 1234
"""lm-eval's default."""


def _not_at_hand(name: str, error: Exception) -> str:
    return (
        f"task '{name}' cannot be loaded: {type(error).__name__}: {one_line(error)[:300]}; if its data is "
        "missing, download it with `hf download --repo-type dataset NAME` where there is a network and set "
        "HF_HOME to the folder, or describe the task with data_files of your own in a YAML file below "
        "harness.include"
    )
