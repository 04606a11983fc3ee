"""Coordination of the ranks of a run: process group, collectives, rendezvous, heartbeats and stop signals."""
