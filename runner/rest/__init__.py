"""REST: routes, parameters and answers over HTTP and websockets, and the OpenAPI document of them."""

from runner.rest.app import HEALTH_PATHS, make_app

__all__ = ["HEALTH_PATHS", "make_app"]
