"""From a checkpoint to a robot: export to ONNX, the runtime that plays the export, and its timing.

Nothing heavy is imported here; training and the models themselves live above, in `vla`.
"""
