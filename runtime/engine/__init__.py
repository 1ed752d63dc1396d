"""Scheduler, block manager, sampler and the loop that turns them."""
