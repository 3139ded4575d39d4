"""The stages of a run, one class each: what decides its result, what it reads, needs and does."""
