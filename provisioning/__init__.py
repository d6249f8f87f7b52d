"""Decides. Pure: no clock, no socket, no SQL, no randomness; all of those are arguments."""
