"""A folder of small tasks for lm-eval, with their data."""

import json
from pathlib import Path
from typing import Any

import yaml

QUESTIONS = [
    {"question": "the river is", "choices": ["green", "a long road", "blue"], "answer": 1},
    {"question": "one of the", "choices": ["notes", "rivers", "keys"], "answer": 0},
    {"question": "here", "choices": ["we go", "again", "and back"], "answer": 2},
]


def task_file(folder: Path, name: str, data: Path, **changes: Any) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def make_tasks(folder: Path) -> Path:
    """A folder of tasks: one of choices, one of generated text, one of whole texts."""
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    choice = {"doc_to_target": "answer", "doc_to_choice": "{{choices}}", "output_type": "multiple_choice"}
    task_file(folder, "pick", data, **choice, metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}])
    task_file(
        folder,
        "write",
        data,
        doc_to_target="{{choices[answer]}}",
        output_type="generate_until",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
        filter_list=[
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {
                "name": "word",
                "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}],
            },
        ],
    )
    task_file(
        folder,
        "read",
        data,
        doc_to_text="",
        doc_to_target="{{question}}",
        output_type="loglikelihood_rolling",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    return folder
