"""Inverse dynamics: the actions of a known robot, read from frames, with their uncertainty."""
