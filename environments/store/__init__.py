"""The face of the room."""

from environments.store.collection import Rules, Verdict, judge
from environments.store.key import environment_key, platform_tag
from environments.store.store import MANIFEST, KeptInStore, Store

__all__ = ["MANIFEST", "KeptInStore", "Rules", "Store", "Verdict", "environment_key", "judge", "platform_tag"]
