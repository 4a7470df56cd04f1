"""Where this collection reaches into other packages: every patch, each with when it may go.

Knows the packages' insides at the pinned releases. Each patch says what it is for and falls back to
the package as it is where the patched name is gone; `tests/test_upstream.py` fails once one is not
needed any more. Does not know what any of it is used for.
"""
