"""What people look at: the state of jobs, the state of a machine."""
