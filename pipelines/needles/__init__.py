"""Synthetic documents and recall prompts, the same for every seed and index whatever the parallelism."""
