"""How fast and how small: one file per question, run by `moembed bench`."""

SUITES = (
    "start", "shared", "encode", "peers", "train", "demo", "memory", "roofline", "moe", "scaling",
    "precision", "export", "mine", "late", "metrics", "evaluate", "serve", "gpu",
)  # fmt: skip
