"""The rows of bench/cpu.py: each module yields those of one part."""
