"""Whole plates: many images or stacks on a distributed engine, counts by well and time."""
