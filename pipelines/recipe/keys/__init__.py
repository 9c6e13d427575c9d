"""The keys of every kind of stage, as pydantic models that look at keys alone."""
