"""Reproduce the paper's tables: grids of runs, published results and output files."""
