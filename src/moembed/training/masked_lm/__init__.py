"""The masked language modelling task: a corpus, masks, heads, and the held-out loss."""
