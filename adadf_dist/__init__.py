"""Distributed training of Ada-DF: dual-branch adaptive label-distribution fusion for facial-expression recognition."""

__version__ = "0.1.0"
