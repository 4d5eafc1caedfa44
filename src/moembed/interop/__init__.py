"""Our models inside other libraries: transformers' auto classes and, through them, sentence-transformers."""
