"""A folder on a device answers questions about pictures.

Knows devices, generation and conversations. Does not know how a folder was made, nor who asks.
"""
