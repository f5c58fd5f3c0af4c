"""How the acting body looks: the robot as it is, or a floating hand with the robot's arm gone.

Physics and everything else in the scene stay as they are; drawing is left to `render`.
"""

from __future__ import annotations

from typing import Any, Literal

from pyramid.sim import backend

Look = Literal["robot", "hand"]
LOOKS: tuple[Look, ...] = ("robot", "hand")

_HIDDEN_BODIES = frozenset({"head", "pedestal", "base", "torso", "controller_box", "pedestal_feet", "screen"})
_HAND_PARTS = ("hand", "claw", "pad")
_HIDDEN_SITES = frozenset({"basesite", "headsite", "armsite", "endEffector", "rightEndEffector", "leftEndEffector"})
_SKIN_RGBA = (0.9, 0.7, 0.6, 1.0)
_NO_MATERIAL = -1


def apply_look(model: Any, look: Look, light: float = 1.0) -> None:
    """Changes a MuJoCo model in memory so that it is drawn with the given look; ``robot`` changes nothing.

    Args:
        model: MuJoCo's model of a Meta-World task, fresh.
        look: ``hand`` hides the arm and its stand and gives hand and fingers the colour of skin.
        light: gain of all lights.
    """
    if light != 1.0:
        head = model.vis.headlight
        lamps = (model.light_ambient, model.light_diffuse, model.light_specular)
        for colour in (*lamps, head.ambient, head.diffuse, head.specular):
            colour[:] = colour * light
    if look == "robot":
        return
    mj = backend.mujoco()
    for geom in range(model.ngeom):
        body = mj.mj_id2name(model, mj.mjtObj.mjOBJ_BODY, model.geom_bodyid[geom]) or ""
        if body in _HIDDEN_BODIES or (body.startswith("right_") and body != "right_hand"):
            model.geom_matid[geom] = _NO_MATERIAL
            model.geom_rgba[geom, 3] = 0
        elif any(part in body for part in _HAND_PARTS):
            model.geom_matid[geom] = _NO_MATERIAL
            model.geom_rgba[geom] = _SKIN_RGBA
    for site in range(model.nsite):
        if mj.mj_id2name(model, mj.mjtObj.mjOBJ_SITE, site) in _HIDDEN_SITES:
            model.site_rgba[site, 3] = 0
