"""Synthetic training pairs: a text generator writes queries, paraphrases and hard negatives for documents."""
