"""What training a policy needs besides its loss: checkpoints to start from, adapters, memory, validation, preflight."""
