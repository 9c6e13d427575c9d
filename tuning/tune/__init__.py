"""The `tune` stage: which of many settings recalls best."""
