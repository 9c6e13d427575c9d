"""How much memory a worker will need, counted before anything starts.

`count` runs the stage's model without memory (`passes`, which sees what is alive in it, layer by layer) and
adds what the engine holds beside a pass (`engine`); `device` says what there is, `check` compares the two,
and `fit` looks for the keys to change. Only `passes` and what it stands on import torch.
"""
