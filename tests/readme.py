"""What the README tells to type."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[list[str]]:
    """Return the commands of the README's section without notebooks, cut into words."""
    block = re.search(r"## Without notebooks\n\n```\n(.*?)```", README, flags=re.DOTALL)[1]
    return [shlex.split(line) for line in block.splitlines() if line.startswith("vlm ")]
