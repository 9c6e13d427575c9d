"""A task of lm-eval 0.4.13 whose documents lie on disk: like its own RULER task otherwise.

Scores are lm-eval's own functions, so that the folder needs nothing but lm-eval. As with its own tasks the
metric's name is the length, and the score at 4,096 is -1 where that is not the length.
"""

from __future__ import annotations

from typing import Any

import yaml

from pipelines.recipe.keys.ruler import RulerTask
from pipelines.ruler.tasks import answer_tokens, delimiter, task_name

_FUNCTIONS = "lm_eval.tasks.ruler.common_utils"
_ALWAYS_NAMED = 4096


class _Function(str):
    """The full name of a function, which lm-eval imports."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Function, lambda dumper, name: dumper.represent_scalar("!function", str(name), style="")
)


def task_yaml(task: RulerTask, length: int, data: str) -> str:
    """Returns the YAML of a task whose documents are the Arrow file `data`, an absolute path or a URL."""
    asks = task in ("qa_squad", "qa_hotpot")
    content: dict[str, Any] = {
        "task": task_name(task, length),
        "dataset_path": "arrow",
        "dataset_kwargs": {"data_files": {"test": data}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "gen_prefix": "{{gen_prefix}}",
        "target_delimiter": delimiter(task),
        "process_results": _Function(f"{_FUNCTIONS}.process_results{'_part' if asks else ''}"),
        "metric_list": [_metric(each) for each in sorted({_ALWAYS_NAMED, length})],
        "generation_kwargs": {
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": answer_tokens(task),
            "until": [],
        },
        "repeats": 1,
        "metadata": {"version": 1.0},
    }
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _metric(length: int) -> dict[str, Any]:
    aggregation = _Function(f"{_FUNCTIONS}.aggregate_metrics")
    return {"metric": str(length), "aggregation": aggregation, "higher_is_better": True}
