"""The policy: a vision-language backbone (System 2), a flow-matching action head (System 1), and their way to a robot.

Nothing heavy is imported here, so that `vla.deploy.runtime` loads without torch; batches come from `pyramid.mixture`.
"""
