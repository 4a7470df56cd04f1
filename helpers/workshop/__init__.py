"""What keeps this collection itself going; readers need not enter.

Knows the execution of notebooks, generated pages, and the training of the small checkpoints. Does
not know anything that a model needs to run.
"""
