"""Korean: the overview."""

from typing import Final

OVERVIEW: Final = {
    "A module runs by itself with “schedules” in modules.yaml.": (
        "modules.yaml에 “schedules”를 쓰면 모듈이 저절로 실행됩니다."
    ),
    "A part of this page cannot be shown": "이 페이지의 일부를 표시할 수 없습니다",
    "All schedules": "모든 스케줄",
    "All {n}": "전체 {n}개",
    "Call a module, and its executions are counted here.": "모듈을 호출하면 그 실행을 여기에서 셉니다.",
    "Caller": "호출자",
    "Choose a module": "모듈 선택",
    "Comes next": "다음 예정",
    "Damaged: {parts}": "손상됨: {parts}",
    "Disk": "디스크",
    "Ended in the last 24 hours": "최근 24시간 동안 끝난 실행",
    "Executions without a free worker, and queued ones, are listed here with the reason.": (
        "워커를 얻지 못한 실행과 대기열에 있는 실행이 이유와 함께 여기에 나옵니다."
    ),
    "Failed": "실패",
    "Failed since yesterday": "어제부터 실패",
    "For": "경과",
    "History": "이력",
    "Hour from": "시작 시각",
    "Load": "부하",
    "Machine": "컴퓨터",
    "Memory": "메모리",
    "Module": "모듈",
    "Modules with failed executions since yesterday, 0:00 UTC, are listed here.": (
        "어제 0시(UTC)부터 실패한 실행이 있는 모듈이 여기에 나옵니다."
    ),
    "Most often": "가장 잦은 오류",
    "Next": "다음",
    "Next schedule": "다음 스케줄",
    "No execution may begin": "실행을 시작할 수 없습니다",
    "No failures since yesterday": "어제부터 실패가 없습니다",
    "No schedule is active": "활성 스케줄이 없습니다",
    "No {kind} on this machine: its modules fail": "이 컴퓨터에 {kind}이(가) 없어 그 모듈이 실패합니다",
    "Nothing has run yet": "아직 실행된 것이 없습니다",
    "Nothing runs now": "지금 실행 중인 것이 없습니다",
    "Nothing waits": "기다리는 것이 없습니다",
    "Reason": "이유",
    "Red since yesterday": "어제부터 실패한 모듈",
    "Running": "실행 중",
    "Runs now": "지금 실행 중",
    "Schedule": "스케줄",
    "Show as numbers": "숫자로 보기",
    "The history cannot be written": "이력을 쓸 수 없습니다",
    "The log names the files and the remedy.": "로그에 해당 파일과 해결 방법이 있습니다.",
    "The state of the machine is not known": "컴퓨터의 상태를 알 수 없습니다",
    "There is no module yet. Write one into modules.yaml, or register one:": (
        "아직 모듈이 없습니다. modules.yaml에 쓰거나 다음과 같이 등록하세요:"
    ),
    "There is nothing for you to see here": "여기에 표시할 내용이 없습니다",
    "Unresolved failures": "해결되지 않은 실패",
    "Waiting": "대기 중",
    "Waits for approval": "승인을 기다리는 실행",
    "Waits, and why": "대기 중인 실행과 이유",
    "When": "실행하는 때",
    "Your token or key has none of the scopes executions:read, schedules:read, modules:read and metrics:read.": (
        "토큰이나 키에 scope executions:read, schedules:read, modules:read, metrics:read 가운데 어느 것도 없습니다."
    ),
    "all is well": "이상 없음",
    "every {time}": "{time}마다",
    "healthy": "정상",
    "in {n} modules": "모듈 {n}개에서",
    "in {time}": "{time} 후",
    "needs you": "조치 필요",
    "no queue": "대기열 없음",
    "none is active": "활성 스케줄 없음",
    "nothing now": "지금은 없음",
    "once": "한 번",
    "the longest for {time}": "가장 오래된 것은 {time}째",
    "worth a look": "확인 필요",
    "{busy} busy, {idle} idle, {waiting} wait": "사용 중 {busy}, 유휴 {idle}, 대기 {waiting}",
    "{failed} of {total}": "{total}건 중 {failed}건",
    "{free} of {total} free": "{total} 중 {free} 남음",
    "{kind} workers": "{kind} 워커",
    "{load} on {n} processors": "프로세서 {n}개에 {load}",
    "{n} executions, {size}": "실행 {n}건, {size}",
    "{succeeded} succeeded, {failed} failed and {cancelled} were cancelled.": (
        "성공 {succeeded}건, 실패 {failed}건, 취소 {cancelled}건입니다."
    ),
}
