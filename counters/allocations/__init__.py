"""What a call allocates and frees: programs over tensors that are only sizes, one a family, found by its name."""
