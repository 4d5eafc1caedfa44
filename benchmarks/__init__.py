"""How fast and how small: one file per question, run by `moembed bench`."""

SUITES = (
    "moe", "roofline", "scaling", "encode", "precision", "train", "memory", "export", "mine",
    "metrics", "evaluate", "gpu",
)  # fmt: skip
