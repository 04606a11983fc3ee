"""Find the training samples of a run that are likely mislabeled. See docs/audit.md."""
