"""All routes as one ASGI application: it finds the operation of a request, and answers for those that have none.

It also knows proxies in front of the server, web sites that may use it, the caller, and how answers are sent.
"""

from runner.rest.routing.origins import Origins
from runner.rest.routing.paths import Paths
from runner.rest.routing.proxies import Proxies
from runner.rest.routing.sending import BROKEN, transmit
from runner.rest.routing.serving import Endpoints, fields_of
from runner.rest.routing.site import FOUND, Site, nothing_at, other_method

__all__ = [
    "BROKEN",
    "FOUND",
    "Endpoints",
    "Origins",
    "Paths",
    "Proxies",
    "Site",
    "fields_of",
    "nothing_at",
    "other_method",
    "transmit",
]
