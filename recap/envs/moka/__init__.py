"""env=moka: moka pots, a stove and a trivet of primitive shapes, in the shape of LIBERO's tasks.

`gymnasium.make("recap.envs.moka:recap/Moka-v0")` gives the plain Gymnasium environment.
"""

import gymnasium

gymnasium.register("recap/Moka-v0", entry_point="recap.envs.moka.env:MokaEnv")
