"""Korean: the frame of every page, signing in, failures."""

from typing import Final

FRAME: Final = {
    "Overview": "개요",
    "Executions": "실행",
    "Modules": "모듈",
    "Schedules": "일정",
    "Environments": "환경",
    "Keys": "키",
    "Audit": "감사 기록",
}
