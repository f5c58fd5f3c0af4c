"""How a body's numbers are written: its parts, its rotations, and its chunks of actions for a network, in numpy alone.

Nothing here knows torch: training and robot run the same code. Statistics are left to `pyramid.mixture`.
"""

from pyramid.actions.chunks import ChunkCodec
from pyramid.actions.history import StateHistory
from pyramid.actions.spec import ActionPart, BodySpec, StatePart

__all__ = ["ActionPart", "BodySpec", "ChunkCodec", "StateHistory", "StatePart"]
