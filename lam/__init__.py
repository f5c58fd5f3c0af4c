"""Latent actions: what changed between two frames of any video, as a few small tokens learned without action labels."""
