"""How fast and how small: one file per question, run by `moembed bench`."""

SUITES = ("moe", "scaling", "encode", "train", "memory", "export", "gpu")
