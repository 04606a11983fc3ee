"""A run folder as one page, and its figures at paper quality. Reads run folders only."""
