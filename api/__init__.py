"""The contract: specs, quantities, model and device facts, and the memory budget. Pure: no I/O, no torch."""
