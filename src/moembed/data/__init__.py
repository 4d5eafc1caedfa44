"""Training pairs: where they are read from, in which order they are drawn, and the built-in real data set."""
