"""The verbs of the runner, without transport: what every door calls. Each checks scopes and modules of its caller."""

from runner.api.answers import Answers, Left, event_size, is_large, is_small
from runner.api.batch import MAX_PARALLELISM, Batch, Ended, Input
from runner.api.checks import Checks
from runner.api.described import NOT_SHOWN, ShownTool, module_fields
from runner.api.details import SPANS, CodeFile, Span
from runner.api.files import StoredFiles, gathering, viewer_of
from runner.api.following import while_valid
from runner.api.glance import Ends, Glance, Hardware, Lives
from runner.api.internal import InternalFailure, failure_of
from runner.api.keys import KeyOrder
from runner.api.machine import BuiltEnvironment, ShownCluster, ShownNode, ShownWorker
from runner.api.management import Publishing
from runner.api.outputs import MAX_LINE, MAX_LINES, MAX_SEARCHED, Line, Lines, Look, Matches, Sort, Spot, Window
from runner.api.reruns import ACTIVE, SAME, Again, Cancelled
from runner.api.service import Service
from runner.api.starts import MAX_NEXT, NoticeVerbs, ShownSchedule, fields_of

__all__ = [
    "ACTIVE",
    "MAX_LINE",
    "MAX_LINES",
    "MAX_NEXT",
    "MAX_PARALLELISM",
    "MAX_SEARCHED",
    "NOT_SHOWN",
    "SAME",
    "SPANS",
    "Again",
    "Answers",
    "Batch",
    "BuiltEnvironment",
    "Cancelled",
    "Checks",
    "CodeFile",
    "Ended",
    "Ends",
    "Glance",
    "Hardware",
    "Input",
    "InternalFailure",
    "KeyOrder",
    "Left",
    "Line",
    "Lines",
    "Lives",
    "Look",
    "Matches",
    "NoticeVerbs",
    "Publishing",
    "Service",
    "ShownCluster",
    "ShownNode",
    "ShownSchedule",
    "ShownTool",
    "ShownWorker",
    "Sort",
    "Span",
    "Spot",
    "StoredFiles",
    "Window",
    "event_size",
    "failure_of",
    "fields_of",
    "gathering",
    "is_large",
    "is_small",
    "module_fields",
    "viewer_of",
    "while_valid",
]
