"""What each Meta-World task asks for, in a sentence that a person would say.

How a task is simulated and solved is left to Meta-World.
"""

from __future__ import annotations

from pyramid.errors import ConfigError, nearest

INSTRUCTIONS: dict[str, str] = {
    "assembly-v3": "put the ring over the peg",
    "basketball-v3": "drop the ball through the hoop",
    "bin-picking-v3": "move the cube into the other bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "reach around the wall and press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "lift the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "hammer-v3": "hammer the nail into the board",
    "hand-insert-v3": "put the puck into the hole",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "put the peg into the hole in the side",
    "peg-unplug-side-v3": "pull the peg out of the hole in the side",
    "pick-out-of-hole-v3": "lift the puck out of the hole",
    "pick-place-v3": "pick up the puck and bring it to the target",
    "pick-place-wall-v3": "pick up the puck and bring it over the wall to the target",
    "plate-slide-back-side-v3": "slide the plate out of the goal sideways",
    "plate-slide-back-v3": "slide the plate out of the goal",
    "plate-slide-side-v3": "slide the plate into the goal sideways",
    "plate-slide-v3": "slide the plate into the goal",
    "push-back-v3": "pull the puck back to the target",
    "push-v3": "push the puck to the green target",
    "push-wall-v3": "push the puck around the wall to the target",
    "reach-v3": "move the hand to the red target",
    "reach-wall-v3": "move the hand around the wall to the target",
    "shelf-place-v3": "put the cube on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pull the pitcher with the stick",
    "stick-push-v3": "push the pitcher with the stick",
    "sweep-into-v3": "sweep the cube into the hole",
    "sweep-v3": "sweep the cube off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}
"""Instruction by task name."""


def instruction(task: str) -> str:
    """Returns the sentence of a task.

    Raises:
        ConfigError: no such task; the nearest is named.
    """
    if task not in INSTRUCTIONS:
        raise ConfigError(f"there is no Meta-World task '{task}'{nearest(task, INSTRUCTIONS)}")
    return INSTRUCTIONS[task]
