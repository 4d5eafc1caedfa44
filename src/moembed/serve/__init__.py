"""A trained model behind HTTP: the batcher, what clients may ask, and how the server is run."""
