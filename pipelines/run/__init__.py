"""A recipe's stages in order: what has to run, one run at a time, and the records of what finished."""
