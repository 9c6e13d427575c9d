"""The front door: the `espan` command, job submission and cluster configurations."""
