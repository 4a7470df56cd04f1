"""The names of the small checkpoints that come with the collection, for tests of each of them."""

from helpers.models.families import families

BUNDLED_NAMES = [family.bundled for family in families() if family.checkpoint]
