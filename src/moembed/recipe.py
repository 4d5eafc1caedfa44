"""The base that recipes call ``minilm``, for scripts that ask where it lies."""

from moembed.folder.bases import packaged_minilm

__all__ = ["packaged_minilm"]
