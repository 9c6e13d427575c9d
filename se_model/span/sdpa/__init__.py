"""The sdpa backend: torch's scaled_dot_product_attention, and on a CPU the kernels beneath it.

``backend.py`` chooses one of three ways: ``causal_calls.py``, ``masked_calls.py``, ``merged_parts.py``. The
last one's pieces (``parts.py``, ``merge.py``, ``part_kernels.py``, ``stretches.py``) also attend to rows
that lie on several ranks (``se_model.parallel``).
"""
