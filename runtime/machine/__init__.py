"""What this machine gives a process: limits of its container, threads, instructions, memory of the C heap."""
