"""Weights before they are a model: read tensor by tensor, merged, written, or put into their model."""
