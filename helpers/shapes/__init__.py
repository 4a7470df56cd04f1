"""The drawn world: pictures of coloured shapes, exact questions about them, small checkpoints.

Knows how to draw, ask and train a tokenizer. Does not know models; see `workshop` for training.
"""
