"""Which past memory blocks each choice retrieves: summaries, judging queries, relevancies, ranking."""
