"""Episodes in the environment: simulation processes, their journal, one policy call for all of them."""
