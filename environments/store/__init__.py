"""Directories of built environments: one for each content, built once, locked, in use, or collected as garbage."""

from environments.store.collection import Rules, Verdict, judge
from environments.store.key import environment_key, platform_tag
from environments.store.store import MANIFEST, Store

__all__ = ["MANIFEST", "Rules", "Store", "Verdict", "environment_key", "judge", "platform_tag"]
