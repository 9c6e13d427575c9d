"""Searches and comparisons over whole trainings: the stages `tune` and `compare`, on Ray Tune."""
