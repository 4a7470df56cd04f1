"""How good, how fast and how large a model is.

Knows pictures with questions that it is given, PyTorch beside OpenVINO, and full-size models with
random weights. Does not know where pictures come from, nor how figures are shown.
"""
