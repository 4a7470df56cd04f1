"""What notebooks show: choices in widgets, tables, plots, checks of exercises.

Knows how things look. Does not know how they are computed.
"""
