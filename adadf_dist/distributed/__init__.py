"""Process groups: ranks, collectives, rendezvous, heartbeats."""
