"""Triton kernels of the backend ``fused``. Importing anything below needs triton.

All kernels name things alike. Pointers are plural nouns and come first, then strides (in elements: of batch,
head, token; the last dimension's is 1), then sizes. A *tile* is a row of an int32 table from ``tables.py``
and tells a program where to work. Offsets of tokens are 64-bit: a row of a million tokens has more than 2^31
elements.
"""
