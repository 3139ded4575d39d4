import numpy as np


class Demonstrator:
    def __init__(self, config, rng):
        self.noise, self.rng = config.noise, rng

    def reset(self, env, task): ...

    def act(self, env):
        wanted = 10 * (env.target - env.point) + self.rng.normal(0, self.noise, 2)
        return np.clip(wanted, -1, 1).astype(np.float32)
