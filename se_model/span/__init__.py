"""Span-expanded attention (SE-Attn): chunks attend to themselves and to a few retrieved memory blocks."""

from se_model.span.config import SpanConfig
from se_model.span.operator import se_attention, select_blocks
from se_model.span.protocol import Attention, AttentionConfig

__all__ = ["Attention", "AttentionConfig", "SpanConfig", "se_attention", "select_blocks"]
