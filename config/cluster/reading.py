"""The readers of the settings of a cluster."""

from __future__ import annotations

import re
from typing import Any, Final

from config.mistakes import Wrong
from config.shapes import Values, accepting
from config.units import matching, show, web_address, words

_SERVER: Final = re.compile(
    r"(?:(?P<scheme>nats|tls)://)?(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)
_PORT: Final = 4222
_MOST_SERVERS: Final = 32
_FORM: Final = "addresses of NATS servers, such as nats://one,two,three or tls://one:4222"


@accepting(Values.WORDS)
def read_servers(value: Any) -> tuple[str, ...]:
    """Read addresses of NATS servers, `nats://one,two:4223`, each as `SCHEME://HOST:PORT` with the scheme of the first.

    Users and passwords are refused: addresses are shown and logged.
    """
    given = words(value)
    if any("@" in word for word in given):
        reason = "has a user, a password or a token, which would be shown; put credentials into `cluster_credentials`"
        raise Wrong(reason, allowed=_FORM)
    if len(given) > _MOST_SERVERS:
        raise Wrong(f"has {len(given)} servers; the limit is {_MOST_SERVERS}", allowed=f"at most {_MOST_SERVERS}")
    found: list[str] = []
    first = "nats"
    for word in given:
        match = _SERVER.fullmatch(word)
        port = int(match["port"] or _PORT) if match else 0
        if match is None or not 0 < port < 65536:
            raise Wrong(f"{show(word)} is not one of the {_FORM}", allowed=_FORM)
        first = first if found else match["scheme"] or first
        if (scheme := match["scheme"] or first) != first:
            raise Wrong(f"has {first}:// and {scheme}://; give all servers by one of them", allowed=_FORM)
        found.append(f"{scheme}://{match['host']}:{port}")
    return tuple(dict.fromkeys(found))


@accepting(Values.WORDS)
def read_monitors(value: Any) -> tuple[str, ...]:
    """Read the addresses of monitoring ports: `http://one:8222,http://two:8222`."""
    return tuple(map(web_address, words(value)))


read_cluster_name = matching(
    r"[a-z]([a-z0-9_-]{0,30}[a-z0-9])?", "a name: 1 to 32 of a-z, 0-9, '_' and '-', a letter first"
)
read_node = matching(
    r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?",
    "the name of a runner: 1 to 63 letters, digits, '_' and '-', a letter or digit first and last",
)
