"""What runs next: sequences, their blocks, the order of steps. Without torch, input or output, or a clock."""
