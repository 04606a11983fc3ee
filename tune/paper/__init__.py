"""The paper's tables: grids, published numbers, files."""
