"""What can be said of a training before it starts: memory, exchange, how rows are shared."""
