"""Recurrent layers of transformers' hybrids that keep documents apart and share a row over ranks."""

from se_model.attach.mixers.mixer import AttachedMixer
from se_model.attach.mixers.table import (
    choose_backends,
    library_limit,
    recurrences_of,
    replace_mixers,
    restore_mixers,
)

__all__ = [
    "AttachedMixer",
    "choose_backends",
    "library_limit",
    "recurrences_of",
    "replace_mixers",
    "restore_mixers",
]
