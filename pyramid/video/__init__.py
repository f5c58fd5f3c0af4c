"""Video files: what they say of themselves, their frames by time, and short-GOP clips."""
