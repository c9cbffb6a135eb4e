"""Sessions of the dashboard: the credential of a browser, kept in memory; links that sign in once; forged requests.

Light, so that a server which never shows a page need not import a web framework.
"""

from runner.ui.sessions.access import Access
from runner.ui.sessions.forgery import forged
from runner.ui.sessions.links import LINK_SECONDS, Links
from runner.ui.sessions.sessions import Session, Sessions

__all__ = ["LINK_SECONDS", "Access", "Links", "Session", "Sessions", "forged"]
