"""Ada-DF at scale: dual-branch adaptive label-distribution fusion for facial-expression recognition."""

__version__ = "0.1.0"
