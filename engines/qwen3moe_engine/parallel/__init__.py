"""Ranks: one process each, one group of shared collectives, one that schedules."""
