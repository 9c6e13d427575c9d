"""Scores a model: needle recall and perplexity, by context length."""
