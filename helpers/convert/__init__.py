"""A checkpoint becomes one folder that a pipeline can run.

Knows all parts together, the disk and the memory. Does not know how a folder is run.
"""
