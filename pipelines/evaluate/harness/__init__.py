"""Tasks of lm-eval (0.4.13): it makes the requests and scores the answers, a fleet of workers answers."""
