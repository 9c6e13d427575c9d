"""The model card tells the truth and can be read by the model hub."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.context import Context, StageOutput
from pipelines.evaluate.scores import PerplexityScore, Scores, TaskScore
from pipelines.export.card import Proof, model_card
from pipelines.models.references import ModelSource
from pipelines.recipe.keys.export import ExportKeys

MakeStage = Callable[..., ExportKeys]
MakeContext = Callable[[], Context]
CHECK = Proof(largest_difference=3.2e-6, largest_logit=17.25, model_class="Mamba2HybridForCausalLM")
HUB = ModelSource("state-spaces/mamba2attn-2.7b", adapter="/x", tokenizer="/x")


def front_matter(card: str) -> dict[str, object]:
    head, matter, _ = card.split("---\n", 2)
    assert head == ""
    return dict(yaml.safe_load(matter))


@pytest.mark.parametrize(("form", "library"), [("merged", "transformers"), ("adapter", "peft")])
def test_the_front_matter_names_library_and_base(
    form: str, library: str, make_stage: MakeStage, make_context: MakeContext
) -> None:
    matter = front_matter(model_card(form, HUB, make_stage(), make_context(), CHECK))
    assert matter["library_name"] == library
    assert matter["base_model"] == "state-spaces/mamba2attn-2.7b"


def test_a_base_at_a_commit_is_named_and_loaded_at_that_commit(
    make_stage: MakeStage, make_context: MakeContext
) -> None:
    base = replace(HUB, base="state-spaces/mamba2attn-2.7b@" + "0" * 40)
    card = model_card("adapter", base, make_stage(), make_context(), CHECK)
    assert front_matter(card)["base_model"] == "state-spaces/mamba2attn-2.7b"
    assert f'.from_pretrained("state-spaces/mamba2attn-2.7b", revision="{"0" * 40}")' in card


@pytest.mark.parametrize("place", ["builtin:tiny", "/data/base", "s3://bucket/base"])
def test_a_base_that_is_not_on_the_hub_is_not_named_as_if_it_were(
    place: str, make_stage: MakeStage, make_context: MakeContext
) -> None:
    card = model_card("adapter", replace(HUB, base=place), make_stage(), make_context(), CHECK)
    assert "base_model" not in front_matter(card)


@pytest.mark.parametrize(
    ("model_class", "imported"),
    [
        ("Mamba2HybridForCausalLM", "from se_model import Mamba2HybridForCausalLM"),
        ("LlamaForCausalLM", "from transformers import AutoModelForCausalLM, AutoTokenizer"),
    ],
)
def test_the_code_in_the_card_names_the_family(
    model_class: str, imported: str, make_stage: MakeStage, make_context: MakeContext
) -> None:
    check = replace(CHECK, model_class=model_class)
    code = (
        model_card("merged", HUB, make_stage(), make_context(), check).split("```python\n")[1].split("```")[0]
    )
    compile(code, "card", "exec")
    assert imported in code
    assert ("se_model" in code) == (model_class == "Mamba2HybridForCausalLM")


def test_the_recipe_in_the_card_is_the_recipe_that_ran(
    make_stage: MakeStage, make_context: MakeContext
) -> None:
    context = make_context()
    card = model_card("merged", HUB, make_stage(), context, CHECK)
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("\n```")[0])
    assert recipe == context.recipe


def test_the_difference_in_logits_is_stated(make_stage: MakeStage, make_context: MakeContext) -> None:
    assert "3.20e-06" in model_card("merged", HUB, make_stage(), make_context(), CHECK)


def test_scores_stand_in_a_table_by_length(
    make_stage: MakeStage, make_context: MakeContext, tmp_path: Path
) -> None:
    output = tmp_path / "after"
    Scores(
        model="tuned",
        attention={"kind": "full"},
        precision="fp32",
        seed=0,
        seconds=1.0,
        tasks=(TaskScore.of_recall("single", 2048, [[True], [True], [True], [False]]),),
        perplexity=(PerplexityScore.of(1024, 1, [2.0]),),
    ).write(str(output))
    stage = make_stage(scores=["after"])
    after = StageOutput("after", "evaluate", str(output), {}, "", stage)
    card = model_card("merged", HUB, stage, replace(make_context(), inputs={"after": after}), CHECK)
    assert "| recall, mean of all tasks | 2,048 |" in card
    assert "| after (tuned) | 75.0% |" in card
    assert "| after (tuned) | 7.39 |" in card
