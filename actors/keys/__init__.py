"""API keys: made, found by their secret, revoked; stored as hashes, so that no file has a key."""

from actors.keys.feed import KeyFeed
from actors.keys.keys import ApiKey, ApiKeys
from actors.keys.stored import KEYS_FILE, KeyFile, StoredKey

__all__ = ["KEYS_FILE", "ApiKey", "ApiKeys", "KeyFeed", "KeyFile", "StoredKey"]
