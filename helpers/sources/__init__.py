"""Checkpoints as files: their configs, tensors and names, on this computer or on the hub.

Knows the layouts of files, and rules that translate names. Does not know what any tensor is for.
"""
