"""Ranks as processes that live and die together, on one machine and over several."""
