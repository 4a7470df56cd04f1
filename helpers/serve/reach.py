"""How a browser on another computer reaches a page that only this computer is served.

Never through a public tunnel. What this module does not know: which computer the browser is on, so
it says so wherever Jupyter or ssh started the program.
"""

import getpass
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

NOTEBOOK = "JPY_SESSION_NAME"  # Jupyter's server sets it for the kernels of notebooks
TERMINAL = "JUPYTER_SERVER_URL"  # ... and this one for its terminals
HUB = "JUPYTERHUB_SERVICE_PREFIX"
SSH = "SSH_CONNECTION"  # addresses and ports of the client and of this computer


def ways(port: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return lines on how to reach a page on `port`; none where a person sits at this computer."""
    if not environment.keys() & {NOTEBOOK, TERMINAL, HUB, SSH}:
        return []
    lines = []
    in_jupyter = environment.keys() & {NOTEBOOK, TERMINAL, HUB}
    if in_jupyter and find_spec("jupyter_server_proxy"):
        lines.append(
            "Where your browser has JupyterLab from another computer, the page is there too, at "
            f"{_base(environment)}proxy/{port}/ instead of {_base(environment)}lab."
        )
    elif HUB in environment:
        lines.append(
            "To reach the page through JupyterHub, have jupyter-server-proxy installed beside it."
        )
    if HUB not in environment:
        command = f"ssh -N -L {port}:127.0.0.1:{port} {_login(environment)}"
        lines.append(f"From another computer, run there first: {command}")
    return lines


def _base(environment: Mapping[str, str]) -> str:
    """Return the path below which Jupyter's server answers, with a slash at both ends."""
    base = environment.get(HUB) or urlsplit(environment.get(TERMINAL, "")).path or _base_of_kernel()
    return f"/{base.strip('/')}/".replace("//", "/")


def _base_of_kernel() -> str:
    """Return what the server that started this kernel wrote about itself; "" if nothing."""
    with suppress(Exception):  # this is no kernel, or of another server
        from ipykernel.connect import get_connection_file

        runtime = Path(get_connection_file()).parent
        text = (runtime / f"jpserver-{os.getppid()}.json").read_text(encoding="utf-8")
        return str(json.loads(text)["base_url"])
    return ""


def _login(environment: Mapping[str, str]) -> str:
    """Return user and computer as ssh takes them, with the port if it is another than usual."""
    user, host = "USER", socket.gethostname()
    with suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        user = getpass.getuser()
    parts = environment.get(SSH, "").split()
    if len(parts) == 4:
        host = parts[2]
        return f"{user}@{host}" if parts[3] == "22" else f"-p {parts[3]} {user}@{host}"
    return f"{user}@{host}"
