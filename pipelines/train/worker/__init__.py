"""What every worker of a training runs."""
