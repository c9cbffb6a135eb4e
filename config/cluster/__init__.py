"""A cluster of runners: the readers of its settings, the rules between them, and labels with what modules need of them.

The settings themselves are in `config/settings.py`.
"""

from config.cluster.credentials import Credentials, read_credentials
from config.cluster.labels import MAX_LABELS, missing_labels, read_labels, read_needs
from config.cluster.reading import read_cluster_name, read_monitors, read_node, read_servers
from config.cluster.rules import CLUSTER_EXTRA, cluster_rules, file_mistakes

__all__ = [
    "CLUSTER_EXTRA",
    "MAX_LABELS",
    "Credentials",
    "cluster_rules",
    "file_mistakes",
    "missing_labels",
    "read_cluster_name",
    "read_credentials",
    "read_labels",
    "read_monitors",
    "read_needs",
    "read_node",
    "read_servers",
]
