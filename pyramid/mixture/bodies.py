"""A source's body with its declaration: what the clips say joined with what a file says; differences are refused."""

from __future__ import annotations

from dataclasses import replace

from pyramid.actions import ActionPart, BodySpec, StatePart
from pyramid.actions.read import read_body
from pyramid.errors import DataError, PyramidError
from pyramid.mixture.spec import SourceSpec
from pyramid.types import Embodiment

__all__ = ["declared", "whole_body"]


_HIDDEN = "its actions begin from the state, which state: false hides; take absolute ones, or leave state: false out"


def declared(body: Embodiment, source: SourceSpec, place: str, name: str) -> Embodiment:
    """Joins what the clips say of a body with its declaration.

    Args:
        body: as the clips have it.
        source: says which representation is asked for.
        place: where the declaration is; empty without one.
        name: the source's, for messages.

    Raises:
        ConfigError: no such declaration, or one that makes no body.
        DataError: it does not fit the clips, or actions are to be taken from a state that is not there.
    """
    if not place and source.actions in ("", "absolute"):
        return body
    try:
        if not (place or source.state):
            raise DataError(_HIDDEN)
        spec = replace(read_body(place), name=body.name) if place else whole_body(body)
        spec = spec.with_actions(source.actions) if source.actions else spec
        if spec.needs_state and not source.state:
            raise DataError(_HIDDEN)
        if (body.label == "pseudo" or not source.state) and not spec.needs_state:
            # Labels come without states, and others may be hidden.
            spec = replace(spec, state={}, action={n: replace(p, state="") for n, p in spec.action.items()})
        return replace(body, declaration=spec)
    except PyramidError as error:
        raise type(error)(f"source '{name}', declaration '{place or 'none'}': {error}") from error


def whole_body(body: Embodiment) -> BodySpec:
    """Returns a body whose state and action are one part each: joints of the same number.

    Raises:
        DataError: they are not of the same number.
    """
    if body.state_dim != body.action_dim:
        raise DataError(
            f"actions less the state need states of the same size, there are {body.state_dim} and {body.action_dim} "
            "dimensions; name a declaration that says which part begins from which"
        )
    return BodySpec(
        name=body.name,
        state={"joints": StatePart(start=0, end=body.state_dim)},
        action={"joints": ActionPart(start=0, end=body.action_dim)},
    )
