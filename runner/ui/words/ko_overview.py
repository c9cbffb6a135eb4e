"""Korean: the overview."""

from typing import Final

OVERVIEW: Final = {
    "Nothing runs": "실행 중인 작업이 없습니다",
}
