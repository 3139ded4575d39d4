"""The paper's equations: arrays in, arrays out."""
