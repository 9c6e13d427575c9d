"""Evaluations that measured everything: RULER, recall, perplexity by position, lm-eval, retrieval."""

import math

import numpy as np

from pipelines.evaluate.scores import (
    PerplexityScore,
    PositionBin,
    PositionLoss,
    RetrievalDepth,
    RetrievalScore,
    Sample,
    Scores,
    TaskMeasure,
    TaskScore,
    Throughput,
    prompt_hash,
    write_samples,
)
from pipelines.recipe.keys.ruler import RULER_GROUPS

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
PROMPTS = 40
LAYERS, HEADS, BINS = 4, 2, 32


def write_full_scores(folder: str, model: str, skill: float) -> None:
    """Writes what a model with a `skill` of 0 to 1 might have scored; lengths and depths make it harder."""
    ruler = [
        _task("ruler", task, length, skill, group)
        for task, group in RULER_GROUPS.items()
        for length in LENGTHS
    ]
    recall = [_task("recall", task, length, skill) for task in ("single", "multi_key") for length in LENGTHS]
    harness = [_task("harness", task, None, skill) for task in ("arc_easy", "hellaswag")]
    found = [*ruler, *recall, *harness]
    losses = [2 + skill / 10 + 0.01 * index for index in range(8)]
    Scores(
        model=model,
        attention={"kind": "span"},
        precision="fp32",
        seed=17,
        seconds=3.0,
        tasks=tuple(score for score, _ in found),
        perplexity=tuple(
            PerplexityScore.of(n, 1, [each - math.log2(n) / 20 for each in losses]) for n in LENGTHS
        ),
        positions=(
            PositionLoss(length=LENGTHS[-1], bins=tuple(_bin(index, skill) for index in range(BINS))),
        ),
        retrieval=tuple(_retrieval(length, skill) for length in LENGTHS),
        throughput=(Throughput.of("ruler", prompts=13 * PROMPTS, tokens=10**8, seconds=4000.0),),
    ).write(folder)
    write_samples(folder, [sample for _, samples in found for sample in samples])


def _task(
    measure: TaskMeasure, task: str, length: int | None, skill: float, group: str | None = None
) -> tuple[TaskScore, list[Sample]]:
    """A score and its samples. The same prompts are as hard for every model, and easier for a better one."""
    generator = np.random.default_rng(len(task) + (length or 0))
    hardness, depths = generator.uniform(0, 1, PROMPTS), generator.uniform(0, 1, PROMPTS)
    reach = skill - (math.log2(length / LENGTHS[0]) / 10 if length else 0.2)
    values = [float(hard + depth / 5 < reach) for hard, depth in zip(hardness, depths, strict=True)]
    metric = "acc" if measure == "harness" else "string_match"
    score = TaskScore.of(
        measure,
        task,
        length,
        metric,
        values,
        group=group,
        depths=list(zip(depths.tolist(), values, strict=True)) if task.startswith(("niah", "single")) else (),
    )
    samples = [
        Sample(
            measure=measure,
            task=task,
            length=length,
            index=index,
            prompt=prompt_hash(f"{measure} {task} {length} {index}"),
            metric=metric,
            value=value,
        )
        for index, value in enumerate(values)
    ]
    return score, samples


def _bin(index: int, skill: float) -> PositionBin:
    size = LENGTHS[-1] // BINS
    loss = 2.5 - skill / 4 - 0.3 * math.log1p(index) / math.log(BINS)
    return PositionBin.of(
        index * size, (index + 1) * size - 1, [size * (loss + 0.01 * row) for row in range(8)]
    )


def _retrieval(length: int, skill: float) -> RetrievalScore:
    def share(*place: int) -> float:
        return min(1.0, skill * (1 - 0.15 * LENGTHS.index(length) * (1 + sum(place)) / 6))

    return RetrievalScore(
        length=length,
        asked=share(1),
        not_asked=share(4),
        chance=0.05,
        asked_by_head=tuple(tuple(share(layer, head) for head in range(HEADS)) for layer in range(LAYERS)),
        asked_by_depth=tuple(
            RetrievalDepth(
                low=depth / 10,
                high=(depth + 1) / 10,
                asked=share(depth // 3),
                asked_by_layer=tuple(
                    None if layer == 3 else share(layer, depth // 3) for layer in range(LAYERS)
                ),
            )
            for depth in range(10)
        ),
        never_chosen=0.4,
    )
