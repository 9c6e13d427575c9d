"""What a task of lm-eval (0.4.13) asks of a language model, computed by this package's own forward.

`encode` turns requests into tokens, `score` and `generate` turn tokens into answers; `model` does both
for lm-eval, in one process, and `fleet_model` by many workers. Answers are those of lm-eval's own `HFLM` with
batches of one row, but nothing is truncated: a request that is too long is refused.
"""
