"""The `compare` stage: named variants of one training, each over several seeds."""
