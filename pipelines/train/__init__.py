"""Training: packed shards and a model in, an adapter or a model out, on Ray Train with DeepSpeed."""
