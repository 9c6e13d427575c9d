"""Models and tokenizers by reference: hub names, folders, what ships with the package, earlier stages."""
