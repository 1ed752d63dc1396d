"""Model families, one file each: what a configuration means, what tensors are called, what AWQ scales together.

`registry.py` finds every module here that has `FAMILIES`: a new family is a new file.
"""
