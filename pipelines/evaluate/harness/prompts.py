"""How long the prompts of lm-eval's tasks are: known before workers reserve memory for what they keep."""

from __future__ import annotations

from pipelines.errors import EspanError, one_line
from pipelines.evaluate.harness.quiet import quiet_lm_eval
from pipelines.evaluate.harness.tasks import FEWSHOT_SEED, Loaded
from pipelines.evaluate.language_model.encode import Encoder
from pipelines.evaluate.language_model.stopping import Generation


def prompt_lengths(loaded: Loaded, encoder: Encoder, limit: int | None) -> dict[str, list[int]]:
    """Returns the tokens of each prompt that is continued, those to be generated included, by task.

    A task that asks for likelihoods alone is left out. The tasks are as before: lm-eval will draw the same
    examples.

    limit: the most documents of each task.

    Raises:
        EspanError: a prompt is longer than the model reads, or a task asks for what is not known here.
    """
    found: dict[str, list[int]] = {}
    for name, task in loaded["tasks"].items():
        # Tasks that are Python classes have this type, too, whatever they ask for.
        if task.OUTPUT_TYPE != "generate_until":
            continue
        if getattr(task, "MULTIMODAL", False):
            raise EspanError(f"task '{name}' shows images, which no model reads here; leave it out")
        try:
            with quiet_lm_eval():
                task.build_all_requests(limit=limit)
            lengths = [
                encoder.prompt(text, Generation.of(how).max_new_tokens).tokens
                for request in task.instances
                if request.request_type == "generate_until"
                for text, how in [request.args] * request.repeats
            ]
        except (EspanError, ValueError) as error:  # the second is how lm-eval refuses a task
            raise EspanError(f"task '{name}': {one_line(error)}") from error
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        task._instances = None  # long texts, which lm-eval makes again when it asks them
        if lengths:
            found[name] = lengths
    return found
