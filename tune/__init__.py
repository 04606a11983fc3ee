"""Searches over configurations of adadf_dist: spaces, trials, and choices that know what is noise."""
