"""Emotion names, where the source readers import them from."""

from adadf_dist.data.emotions import SYNONYMS, find_label

__all__ = ["SYNONYMS", "find_label"]
