"""One PyTorch part becomes one OpenVINO model: traced, made stateful, stored in fewer bits.

Knows PyTorch modules, OpenVINO graphs and NNCF. Does not know families, nor what a part means.
"""
