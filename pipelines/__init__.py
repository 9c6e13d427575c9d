"""Recipes and the stages they run: prepare, train, evaluate, export, report."""
