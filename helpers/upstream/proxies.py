"""httpx 0.28: a proxy in the environment is used for this computer too.

A page on 127.0.0.1 is then asked for at the proxy (https://github.com/encode/httpx/issues/2674),
and a proxy that httpx cannot use, such as one of SOCKS without `socksio`, keeps Gradio from being
imported, though it needs no network. It may go when both work with a proxy `socks4://127.0.0.1:9`.
"""

import contextlib
import os
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback() -> None:
    """Let no request to this computer go through the proxy that the environment names.

    Where it names none nothing changes: any such variable would hide the proxy of the system.
    """
    if not _variables():
        return
    names = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    names = [name.strip() for name in names if name.strip()]
    if names == ["*"]:  # none is used; beside another name urllib takes a star for a letter
        return
    names += [name for name in LOOPBACK if name not in names]
    for variable in ("no_proxy", "NO_PROXY"):
        os.environ[variable] = ",".join(names)


def proxy_for(address: str) -> str:
    """Return the proxy through which an http address is asked, "" where it is asked itself.

    It is the environment's, else the system's.
    """
    parts = urlsplit(address)
    if any(map(urllib.request.proxy_bypass, (parts.netloc, parts.hostname or ""))):
        return ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all", "")
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def without_password(proxy: str) -> str:
    """Return a proxy's address without name and password, as a sentence may show it."""
    scheme, mark, rest = proxy.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Let this process use no proxy for a while, neither the environment's nor the system's."""
    before = {name: os.environ.pop(name) for name in _variables()}
    before |= {name: os.environ[name] for name in ("no_proxy", "NO_PROXY") if name in os.environ}
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        os.environ.update(before)


def _variables() -> list[str]:
    """Return the variables that name proxies; programs read them in small letters and capitals."""
    variables = [name for name in os.environ if name.lower().endswith("_proxy")]
    return [name for name in variables if name.lower() != "no_proxy"]
