"""One file per kind of run: a typed config and a function that carries it out."""
