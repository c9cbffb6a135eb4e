"""REST: routes, parameters and answers over HTTP and websockets, and the OpenAPI document of them."""

from runner.rest.app import make_app

__all__ = ["make_app"]
