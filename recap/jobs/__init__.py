"""Stages as jobs: SLURM's queue, processes of this machine, and what the user sees of them."""
