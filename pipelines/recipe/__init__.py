"""The recipe language: YAML with line numbers, variables, and errors that name file, line and key. Pure."""
