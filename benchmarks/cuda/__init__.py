"""All that needs a GPU: correctness beside the CPU, memory, and speed of training."""
