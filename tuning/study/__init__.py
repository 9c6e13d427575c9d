"""What every study shares: a base training, how trials are scored, run and tabled."""
