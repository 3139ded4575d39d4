"""Data: durable episodes and data sets (recorder), frames as arrays (frames), labels, batches (mixture)."""
