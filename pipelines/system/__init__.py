"""What lies outside a run: storage, the Ray cluster, this machine, and what a shell brings along."""
