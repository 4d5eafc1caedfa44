"""A model folder -> what other runtimes read."""
