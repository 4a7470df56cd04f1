"""What Qwen3-VL and Qwen3.5 share: pictures of any size, videos, positions in three dimensions.

A picture is not cut into tiles: it becomes as many patches as it has room for, and one image
encoder takes any number of them. What depends on a picture's size, where its patches are, is
computed outside of the graph and passed in.

What this package does not know: DeepStack, beyond which layers are tapped, and language models.
"""
