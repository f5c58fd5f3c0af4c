"""What a policy is trained for: flow matching, foreseeing (FLARE), latent tokens, and how much each sample counts."""
