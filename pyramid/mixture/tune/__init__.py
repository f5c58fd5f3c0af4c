"""Choosing a mixture's weights by evidence: small runs, what they predict, and the runs that confirm it."""
