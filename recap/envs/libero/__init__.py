"""LIBERO: any of its suites and tasks, through lerobot's environment."""
