"""Korean: schedules, environments, workers, keys, changes, notices."""

from typing import Final

_SCHEDULES: Final = {
    "Schedules": "스케줄",
    "New schedule": "새 스케줄",
    "Filters": "필터",
    "Module": "모듈",
    "Filter": "적용",
    "Clear": "지우기",
    "Schedule": "스케줄",
    "When": "실행하는 때",
    "State": "상태",
    "Next": "다음",
    "Last": "마지막",
    "Started": "시작",
    "Resume": "다시 시작",
    "Resume {name}": "{name} 다시 시작",
    "Pause": "멈추기",
    "Pause {name}": "{name} 멈추기",
    "No schedule of this module": "이 모듈의 스케줄이 없습니다",
    "Clear the filter to see all schedules.": "필터를 지우면 모든 스케줄이 보입니다.",
    "No schedules yet": "아직 스케줄이 없습니다",
    "A schedule runs a module by itself: at times of a calendar, at intervals, or once.": (
        "스케줄은 모듈을 저절로 실행합니다. 달력의 시각에, 일정한 간격으로, 또는 한 번입니다."
    ),
    "Run now": "지금 실행",
    "Edit": "편집",
    "Delete": "삭제",
    "Delete the schedule {name}? Its executions stay.": "스케줄 {name}을(를) 삭제할까요? 그 실행은 남습니다.",
    "The last time could not start": "마지막 시각에 시작하지 못했습니다",
    "Paused by {name}": "멈춘 사람: {name}",
    "It starts nothing by itself; after “Resume” it runs from then on.": (
        "아무것도 시작하지 않습니다. “다시 시작”을 누르면 그때부터 실행됩니다."
    ),
    "active version": "활성 버전",
    "If the last one still runs": "지난 실행이 끝나지 않은 동안",
    "Missed times": "놓친 시각",
    "Up to so much later": "최대 지연",
    "Defined by": "정의한 곳",
    "the module itself; change it there": "모듈 자체. 거기에서 바꾸세요",
    "Next times": "다음 시각",
    "As if it were not paused.": "멈추지 않았다면의 시각입니다.",
    "There is no next time.": "다음 시각이 없습니다.",
    "So far": "지금까지",
    "All its executions": "이 스케줄의 모든 실행",
    "started": "시작함",
    "The last execution had not ended.": "지난 실행이 끝나지 않았습니다.",
    "skipped": "건너뜀",
    "Nothing could start.": "아무것도 시작할 수 없었습니다.",
    "missed": "놓침",
    "No such module or version, or a refused input.": "모듈이나 버전이 없거나 입력이 거부되었습니다.",
    "could not start": "시작하지 못함",
    "These times wait for the end of the last execution:": "다음 시각은 지난 실행이 끝나기를 기다립니다:",
    "Input": "입력",
    "every {time}": "{time}마다",
    "paused": "멈춤",
    "has a problem": "문제 있음",
    "over": "끝남",
    "active": "활성",
    "by hand": "직접",
}
_SCHEDULE_FORM: Final = {
    "Edit {name}": "{name} 편집",
    "The module that runs.": "실행할 모듈입니다.",
    "Version": "버전",
    "Empty for the active version at each time.": "비워 두면 그때의 활성 버전을 씁니다.",
    "Name": "이름",
    "Letters, digits, dots, dashes and underscores. Empty for a name made from the module.": (
        "영문자, 숫자, 점, 하이픈, 밑줄. 비워 두면 모듈에서 이름을 만듭니다."
    ),
    "At times of a calendar": "달력의 시각에",
    "Cron expression": "Cron 식",
    "minute hour day month weekday, such as 30 3 * * mon-fri, or @daily": (
        "분 시 일 월 요일. 예: 30 3 * * mon-fri 또는 @daily"
    ),
    "At intervals": "일정한 간격으로",
    "Interval": "간격",
    "A duration such as 30s, 15m or 1d": "30s, 15m, 1d 같은 시간",
    "Once": "한 번",
    "Date and time": "날짜와 시각",
    "Such as 2027-01-31T09:30; without an offset in the time zone below": (
        "예: 2027-01-31T09:30. 오프셋이 없으면 아래 시간대의 시각입니다"
    ),
    "Time zone": "시간대",
    "Such as Asia/Seoul": "예: Asia/Seoul",
    "JSON, the input of each execution": "각 실행의 입력(JSON)",
    "skip: no further one starts. queue: up to 100 wait. cancel: the last one is cancelled. parallel: both run.": (
        "skip: 더 시작하지 않습니다. queue: 100개까지 기다립니다. cancel: 지난 실행을 취소합니다. "
        "parallel: 나란히 또 실행합니다."
    ),
    "Times that passed while nothing could start. skip: nothing. last: one run for the last of them. "
    "all: a run for each.": (
        "아무것도 시작할 수 없는 동안 지난 시각입니다. skip: 아무것도 하지 않습니다. "
        "last: 그 마지막 것을 한 번 실행합니다. all: 저마다 실행합니다."
    ),
    "A duration; spreads the runs of many schedules. Empty for none.": (
        "시간. 여러 스케줄의 실행을 흩어 놓습니다. 비워 두면 늦추지 않습니다."
    ),
    "Make schedule": "스케줄 만들기",
    "Save": "저장",
    "Back": "뒤로",
}
_MACHINE: Final = {
    "Environments": "환경",
    "available": "사용 가능",
    "not available": "사용 불가",
    "Workers": "워커",
    "{busy} busy, {idle} idle": "사용 중 {busy}, 유휴 {idle}",
    "Callers that wait": "기다리는 호출자",
    "Builds that run": "진행 중인 빌드",
    "Limits": "제한",
    "limit of {name}": "{name} 제한",
    "Kind": "종류",
    "Memory": "메모리",
    "Calls": "호출",
    "Age": "시작한 지",
    "Process": "프로세스",
    "busy": "사용 중",
    "starting": "시작 중",
    "idle": "유휴",
    "and {n} more": "외 {n}개",
    "No workers": "워커가 없습니다",
    "A worker starts with the first call of a module, and is kept for the next ones.": (
        "워커는 모듈의 첫 호출과 함께 시작하고, 다음 호출을 위해 남습니다."
    ),
    "Built environments": "빌드된 환경",
    "{size} in all": "모두 합해 {size}",
    "Key": "키",
    "Size": "크기",
    "Built": "빌드",
    "Last use": "마지막 사용",
    "Modules": "모듈",
    "none": "없음",
    "No environment is built yet": "아직 빌드된 환경이 없습니다",
    "The environment of a module of the kinds venv, conda or docker is built when the module is published.": (
        "종류가 venv, conda, docker인 모듈의 환경은 모듈을 게시할 때 빌드합니다."
    ),
    "Environment": "환경",
    "Build again": "다시 빌드",
    "Build this environment again? Its idle workers end, and calls wait for the build.": (
        "이 환경을 다시 빌드할까요? 그 유휴 워커가 끝나고, 호출은 빌드를 기다립니다."
    ),
    "It is being built again": "다시 빌드하고 있습니다",
    "Calls wait until it is ready.": "준비될 때까지 호출이 기다립니다.",
    "The last build failed; the environment is as it was": "마지막 빌드가 실패했습니다. 환경은 이전 그대로입니다",
    "Why it is there": "있는 이유",
    "none; “operato-runner env gc” removes it in time": "없음. 때가 되면 “operato-runner env gc”가 지웁니다",
    "in use": "사용 중",
    "Content": "내용",
    "Python without packages": "패키지가 없는 Python",
    "Build log": "빌드 로그",
    "The installer printed nothing.": "설치 도구가 아무것도 출력하지 않았습니다.",
}
_KEYS: Final = {
    "Keys": "키",
    "The key {name} is made": "키 {name}을(를) 만들었습니다",
    "Copy it now: it is not shown again.": "지금 복사하세요. 다시 표시되지 않습니다.",
    "Copied": "복사했습니다",
    "Copy": "복사",
    "Scopes": "scope",
    "Expires": "만료",
    "by {name}": "만든 사람: {name}",
    "valid": "유효",
    "revoked": "폐기됨",
    "expired": "만료됨",
    "all": "전체",
    "never": "없음",
    "Revoke": "폐기",
    "Revoke {name}": "{name} 폐기",
    "Revoke the key {name}? Programs that use it are refused at once.": (
        "키 {name}을(를) 폐기할까요? 이 키를 쓰는 프로그램은 바로 거부됩니다."
    ),
    "No keys yet": "아직 키가 없습니다",
    "A key lets a program call the runner without a token, and can be revoked at any time.": (
        "키가 있으면 프로그램이 토큰 없이 러너를 호출할 수 있고, 언제든 폐기할 수 있습니다."
    ),
    "New key": "새 키",
    "Such as ci, or the name of the program": "예: ci 또는 프로그램 이름",
    "It may": "할 수 있는 일",
    "Names, * for any text: report-*, hello. Empty for all that you may use.": (
        "이름. *는 모든 텍스트를 뜻합니다: report-*, hello. 비워 두면 자신이 쓸 수 있는 모든 모듈입니다."
    ),
    "Valid for": "유효 기간",
    "A duration such as 12h or 90d. Empty for a key that does not expire.": (
        "12h, 90d 같은 시간. 비워 두면 만료되지 않습니다."
    ),
    "Make key": "키 만들기",
    "run modules": "모듈 실행",
    "see executions with input, output and result": "실행과 그 입력, 출력, 결과 보기",
    "see modules, environments and workers": "모듈, 환경, 워커 보기",
    "publish modules": "모듈 게시",
    "publish modules with endpoints": "엔드포인트가 있는 모듈 게시",
    "see schedules": "스케줄 보기",
    "make, pause and start schedules": "스케줄 만들기, 멈추기, 실행",
    "read files": "파일 읽기",
    "store files": "파일 저장",
    "read metrics": "메트릭 읽기",
    "everything, keys and audit included": "키와 감사 로그를 포함한 모든 것",
}
_AUDIT: Final = {
    "Audit": "감사 로그",
    "Change": "변경",
    "Who": "바꾼 사람",
    "From (UTC)": "시작일(UTC)",
    "To (UTC)": "종료일(UTC)",
    "Time": "시각",
    "Details": "자세히",
    "No change matches": "조건에 맞는 변경이 없습니다",
    "Clear a filter to see more.": "필터를 지우면 더 보입니다.",
    "No changes yet": "아직 변경이 없습니다",
    "Changes of modules, keys and schedules are listed here, with who made them.": (
        "모듈, 키, 스케줄의 변경이 바꾼 사람과 함께 여기에 나옵니다."
    ),
    "Module registered": "모듈 등록",
    "Version activated": "버전 활성화",
    "Module deleted": "모듈 삭제",
    "Version deleted": "버전 삭제",
    "Version deleted, as there were too many": "너무 많아 버전 삭제",
    "Module added in the file": "파일에 모듈 추가",
    "Module changed in the file": "파일의 모듈 변경",
    "Module removed from the file": "파일에서 모듈 제거",
    "Key made": "키 만듦",
    "Key revoked": "키 폐기",
    "Schedule made": "스케줄 만듦",
    "Schedule changed": "스케줄 변경",
    "Schedule deleted": "스케줄 삭제",
    "Schedule paused": "스케줄 멈춤",
    "Schedule resumed": "스케줄 다시 시작",
    "Execution approved": "실행 승인",
    "Execution denied": "실행 거부",
}
_NOTICES: Final = {
    "Notices": "알림",
    "Execution": "실행",
    "To": "받는 곳",
    "Made": "만든 시각",
    "Attempts": "시도",
    "Next attempt": "다음 시도",
    "Delivered": "배달됨",
    "Given up": "더는 보내지 않음",
    "Pending": "대기 중",
    "Send again": "다시 보내기",
    "Send the notice to {name} again": "{name}에 알림 다시 보내기",
    "No notice matches": "조건에 맞는 알림이 없습니다",
    "No notices yet": "아직 알림이 없습니다",
    "The field on_end of a module tells a URL or another module when its executions end.": (
        "모듈의 필드 on_end를 쓰면 실행이 끝났을 때 웹 주소나 다른 모듈에 알립니다."
    ),
}
_NODES: Final = {
    "Nodes": "노드",
    "{node} does not reach the NATS servers of the cluster": "{node}에서 클러스터의 NATS 서버에 연결할 수 없습니다",
    "These go on: calls that wait for their answer, what runs here, and all lists of this runner. Nothing accepted is"
    " lost.": (
        "응답을 기다리는 호출, 여기서 실행 중인 작업, 이 러너의 모든 목록은 계속 동작합니다."
        " 접수한 실행은 사라지지 않습니다."
    ),
    "These wait until the servers answer: asynchronous calls, changes of modules, keys and schedules, executions of"
    " other runners, and news of them. The runners below are those that were there before.": (
        "비동기 호출, 모듈·키·스케줄 변경, 다른 러너의 실행과 그 소식은 서버가 응답할 때까지 기다립니다."
        " 아래 목록은 연결이 끊기기 전에 있던 러너입니다."
    ),
    "{n} messages of other releases could not be read": "다른 릴리스의 메시지 {n}개를 읽지 못했습니다",
    "Bring all runners to one release.": "모든 러너를 같은 릴리스로 맞추세요.",
    "Cluster": "클러스터",
    "{n} runners": "러너 {n}개",
    "Calls go on; asynchronous calls are refused. The page Nodes has more.": (
        "호출은 계속되고 비동기 호출은 거부됩니다. 자세한 내용은 노드 페이지에 있습니다."
    ),
    "this runner": "이 러너",
    "draining": "작업 마무리 중",
    "takes work": "작업 받는 중",
    "Release": "릴리스",
    "Labels": "레이블",
    "Workers at work": "작업 중인 워커",
    "Lag": "지연",
    "Up for": "가동 시간",
    "{busy} of {places}": "{places}개 중 {busy}개",
    "Calls that other runners took for callers of this one": "이 러너 대신 다른 러너가 처리한 호출",
    "Executions whose state the cluster does not have yet": "아직 클러스터에 전달하지 못한 실행",
}
OPERATING: Final = {**_SCHEDULES, **_SCHEDULE_FORM, **_MACHINE, **_KEYS, **_AUDIT, **_NOTICES, **_NODES}
