"""How fast and how small: one file per question, run by `moembed bench`."""

SUITES = (
    "start", "shared", "encode", "peers", "train", "demo", "memory", "roofline", "moe", "scaling",
    "precision", "codecs", "export", "mine", "late", "filter", "scale", "metrics", "words", "evaluate",
    "serve", "gpu",
)  # fmt: skip
