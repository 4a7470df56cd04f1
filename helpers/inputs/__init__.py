"""Opening pictures, and turning conversations into token ids.

Knows files, PIL pictures, messages and prompts' templates. Does not know models, nor
which family has which template.
"""
