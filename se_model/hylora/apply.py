"""HyLoRA through peft, so that adapters are ordinary peft adapters and merge as such."""

import logging
from collections import defaultdict

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from transformers import PreTrainedModel

from se_model.hylora.config import HyLoraConfig
from se_model.hylora.coverage import coverage
from se_model.hylora.kinds import TRAINED_IN_FULL, Kind, Part, parts
from se_model.hylora.masters import hold_in_float32
from se_model.hylora.shared import share_updates
from se_model.loss import unwrap

logger = logging.getLogger(__name__)

# peft 0.21 ties the head's trained copy to the embedding's only if `modules_to_save` has a name that ends
# in embed_tokens or lm_head, whatever the embedding is really called. This one matches no module; saved
# with the adapter, it keeps the two tied wherever that is loaded.
_TIES_THE_HEAD = "tied.embed_tokens"


def apply_hylora(model: nn.Module, config: HyLoraConfig) -> PeftModel:
    """Freeze `model` except for what `config` trains, and return it inside a `PeftModel`.

    `model` is a transformers causal language model. Full training goes through peft's `modules_to_save`, so
    that `save_pretrained` writes everything that changed and plain `PeftModel.from_pretrained` restores it.
    Convolutions over q, k and v inside attention layers are 1-D convolutions too, and train with
    `variant="hylora"`. An output head that is not tied to the embeddings stays frozen, as in LongLoRA.

    In a bfloat16 or float16 model what trains is float32 (see `masters.py`), and so is what `save_pretrained`
    writes. Merging rounds it to the model's dtype, and so does plain peft when it loads it (but for
    `low_cpu_mem_usage=True`, after which the model cannot run).

    A weight that several layers share (Zamba2) gets one update for all of them: to merge such an adapter
    after loading it from a folder, load it with `load_adapter`.

    Raises:
        ValueError: if a kind that should train is not in the model, or a weight to train also serves where
            it would not.
    """
    if isinstance(model, PeftModel):
        raise ValueError("the model already carries an adapter; merge it first (PeftModel.merge_and_unload)")
    check_kinds(model, config)
    causal_lm = unwrap(model)
    found = list(parts(causal_lm))
    adapted = [part for part in found if part.kind is Kind.ATTENTION]
    trained = [part for part in found if part.kind in TRAINED_IN_FULL[config.variant]]
    _refuse_partly_trained_weights(causal_lm, adapted)
    _refuse_partly_trained_weights(causal_lm, trained)

    names = [part.name for part in trained]
    tied = Kind.EMBEDDINGS in TRAINED_IN_FULL[config.variant] and (
        causal_lm.get_input_embeddings().weight is causal_lm.get_output_embeddings().weight
    )
    if tied and not any(name.rpartition(".")[2] in EMBEDDING_LAYER_NAMES for name in names):
        names.append(_TIES_THE_HEAD)
    # Full names: peft matches by suffix, and a short one would reach a state-space layer's in_proj too.
    peft_model = get_peft_model(
        causal_lm,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=[part.name for part in adapted],
            modules_to_save=names or None,
            ensure_weight_tying=tied,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    share_updates(peft_model)
    hold_in_float32(peft_model)
    logger.info("%s trains:\n%s", config.variant, coverage(peft_model, config))
    return peft_model


def check_kinds(model: PreTrainedModel, config: HyLoraConfig) -> None:
    """Refuses a model that lacks a kind of layer that should train; weights are not looked at.

    Raises:
        ValueError: names the kinds.
    """
    causal_lm, variant = unwrap(model), config.variant
    present = {part.kind for part in parts(causal_lm)}
    missing = [kind for kind in (Kind.ATTENTION, *TRAINED_IN_FULL[variant]) if kind not in present]
    if missing:
        only_convolutions = missing == [Kind.CONVOLUTIONS]
        advice = "; for a model without convolutions use variant 'lora+'" if only_convolutions else ""
        raise ValueError(
            f"{variant} trains {', '.join(missing)}, but {type(causal_lm).__name__} has none{advice}"
        )


def _refuse_partly_trained_weights(causal_lm: PreTrainedModel, to_train: list[Part]) -> None:
    """A weight that is also used where its update does not reach would not merge to the same model."""
    users = defaultdict(set)
    for name, parameter in causal_lm.named_parameters(remove_duplicate=False):
        users[id(parameter)].add(name.rpartition(".")[0])
    reached = {part.name for part in to_train}
    tied_head = causal_lm.get_output_embeddings().weight
    for part in to_train:
        for parameter in part.module.parameters(recurse=False):
            beyond = users[id(parameter)] - reached
            if beyond and parameter is not tied_head:
                raise ValueError(
                    f"{part.name} of {type(causal_lm).__name__} shares its weight with "
                    f"{' and '.join(sorted(beyond))}, which an update of it would not reach"
                )
