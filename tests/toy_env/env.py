import numpy as np

SPLITS = ("demonstration", "collection", "evaluation")


class Reach:
    """A point moves to a target; each is a square in the image."""

    cameras = ("observation.images.top",)
    state_dim, action_dim = 2, 2
    action_range = (-1.0, 1.0)
    state_names, action_names = ("x", "y"), ("dx", "dy")

    def __init__(self, config):
        self.config, self.tasks, self.fps = config, tuple(config.tasks), config.fps

    def reset(self, *, task, split, initial_state, seed):
        rng = np.random.default_rng([SPLITS.index(split), initial_state])
        self.point, self.target, self.steps = rng.random(2), rng.random(2), 0
        return self.observation()

    def step(self, action, render=True):
        self.point, self.steps = np.clip(self.point + 0.1 * action, 0, 1), self.steps + 1
        success = bool(np.linalg.norm(self.point - self.target) < 0.1)
        return self.observation(), success, success or self.steps == self.config.max_steps

    def close(self): ...

    def observation(self):
        size = self.config.image_size
        image = np.zeros((size, size, 3), np.uint8)
        for place, channel in ((self.point, 0), (self.target, 1)):
            row, column = (place * (size - 8)).astype(int)
            image[row : row + 8, column : column + 8, channel] = 255
        return {self.cameras[0]: image, "observation.state": self.point.astype(np.float32)}


def make(config):
    return Reach(config)
