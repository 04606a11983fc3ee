"""Find likely mislabeled training samples of a run: docs/audit.md."""
