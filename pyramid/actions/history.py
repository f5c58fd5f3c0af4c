"""Past states beside the present one: which rows of an episode they are, and keeping them while a robot moves.

Both follow one rule, so that a policy in a control loop is given what it was trained on: states a whole number of steps
apart, oldest first, the present last; before the first state there was, it stands in for what is missing.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError

__all__ = ["StateHistory", "past_steps"]


def past_steps(n: int, gap_s: float, rate_hz: float) -> NDArray[np.int64]:
    """Returns how many steps after the present (so 0 or less) each of ``n`` states lies, int64 [n], oldest first.

    Args:
        n: states, the present one included.
        gap_s: seconds between two of them; rounded to whole steps, at least one.
        rate_hz: steps per second.
    """
    gap = max(round(gap_s * rate_hz), 1)
    return np.arange(1 - n, 1, dtype=np.int64) * gap


class StateHistory:
    """The states of a robot so far, of which a policy is given some.

    Args:
        state_dim: S, numbers of a state.
        n: H, states that the policy is given; 1 for the present alone.
        gap_s: seconds between them; 0 only for ``n`` = 1.

    Raises:
        DataError: more than one state and no spacing.
    """

    def __init__(self, state_dim: int, *, n: int = 1, gap_s: float = 0.0) -> None:
        if n < 1 or not 0 <= gap_s < math.inf or (n > 1 and gap_s == 0):
            raise DataError(f"a history needs n >= 1 and, above 1, the seconds between states, got {n} and {gap_s}")
        self.state_dim, self.n, self.gap_s = state_dim, n, gap_s
        self._kept: deque[tuple[float, NDArray[np.float32]]] = deque()

    def add(self, state: NDArray[np.floating], at_s: float) -> NDArray[np.float32]:
        """Takes in the newest state and returns what the policy is given with it; see `states`.

        Args:
            state: float [S], physical units.
            at_s: when it was measured, seconds of any clock that never goes back.

        Raises:
            DataError: another shape, numbers that are not finite, or an older time than the last one.
        """
        values = np.asarray(state)
        if values.dtype.kind not in "fiu" or values.shape != (self.state_dim,):
            raise DataError(f"a state must be float [{self.state_dim}], got {values.dtype} {list(values.shape)}")
        if not np.isfinite(values).all():
            raise DataError(f"the state is not finite in dimensions {np.flatnonzero(~np.isfinite(values)).tolist()}")
        if not math.isfinite(at_s) or (self._kept and at_s < self._kept[-1][0]):
            raise DataError(f"a state of {at_s} s comes after one of {self._kept[-1][0] if self._kept else 0.0} s")
        if self._kept and at_s == self._kept[-1][0]:
            self._kept.pop()
        self._kept.append((at_s, values.astype(np.float32)))
        # The second is as near to the oldest time that is still asked for: nothing will ask for the first again.
        while len(self._kept) > 1 and self._kept[1][0] <= at_s - (self.n - 1) * self.gap_s:
            self._kept.popleft()
        return self.states()

    def states(self) -> NDArray[np.float32]:
        """Returns the present state float32 [S], or with a history the last states [H, S], oldest first.

        Of each time it is the state measured nearest to it; of times before the first, that one.

        Raises:
            DataError: there is none yet.
        """
        if not self._kept:
            raise DataError("there is no state yet; add one first")
        times, states = np.array([at for at, _ in self._kept]), [state for _, state in self._kept]
        if self.n == 1:
            return states[-1].copy()
        wanted = times[-1] - self.gap_s * np.arange(self.n - 1, -1, -1)
        nearest = np.abs(times[:, None] - wanted).argmin(0)
        return np.stack([states[place] for place in nearest.tolist()])

    def clear(self) -> None:
        """Forgets everything: a new episode begins."""
        self._kept.clear()
