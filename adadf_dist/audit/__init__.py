"""Which training faces are likely to be mislabelled, by what a run has learned of them: docs/audit.md."""
