"""What is special to each family of models, in a file or folder each, behind one contract.

Knows how a checkpoint's config becomes transformers' own modules, how its tensors are called, which
parts are exported, and how its pictures and prompts are prepared. Does not know how a part becomes
an OpenVINO model, or what runs it.
"""

from helpers.models.families import load_model, load_processor

__all__ = ["load_model", "load_processor"]
