"""Korean: the frame of every page, signing in, failures."""

from typing import Final

FRAME: Final = {
    "API": "API",
    "Audit": "감사 로그",
    "Close": "닫기",
    "Colours of the system": "시스템 색상",
    "Continue": "계속",
    "Dark colours": "어두운 색상",
    "Environments": "환경",
    "Executions": "실행",
    "First page": "첫 페이지",
    "For somebody else, make a token or a key with the rights they need:": (
        "다른 사람에게는 필요한 권한만 있는 토큰이나 키를 만들어 주세요:"
    ),
    "Its token has expired or was revoked, or the runner was started again.": (
        "토큰이 만료되었거나 폐기되었거나, 러너가 다시 시작되었습니다."
    ),
    "Kept in the memory of the runner; your browser gets a cookie that scripts cannot read.": (
        "러너의 메모리에만 보관됩니다. 브라우저에는 스크립트가 읽을 수 없는 쿠키가 저장됩니다."
    ),
    "Keys": "키",
    "Keys of the keyboard": "단축키",
    "Light colours": "밝은 색상",
    "Main menu": "주 메뉴",
    "Modules": "모듈",
    "Next page": "다음 페이지",
    "No token at hand?": "토큰이 없으신가요?",
    "Not allowed": "허용되지 않습니다",
    "Not available now": "지금은 사용할 수 없습니다",
    "Not found": "찾을 수 없습니다",
    "Not signed in": "로그인하지 않았습니다",
    "On the machine of the runner, in its folder, this prints a link that signs in:": (
        "러너의 컴퓨터에서, 러너의 폴더에서 다음 명령을 실행하면 로그인하는 링크가 출력됩니다:"
    ),
    "Open the dashboard": "대시보드 열기",
    "Overview": "개요",
    "Pages": "페이지",
    "Schedules": "스케줄",
    "Search": "검색",
    "Sign in": "로그인",
    "Sign out": "로그아웃",
    "Signed in as {name}": "{name}(으)로 로그인함",
    "Skip to content": "본문으로 건너뛰기",
    "Somebody was faster": "다른 사람이 먼저 바꾸었습니다",
    "That did not work": "처리하지 못했습니다",
    "The runner does not answer. This page continues as soon as it does.": (
        "러너가 응답하지 않습니다. 다시 응답하면 이 페이지도 이어집니다."
    ),
    "The runner failed": "러너에 오류가 발생했습니다",
    "The runner is stopping": "러너가 종료되는 중입니다",
    "This help": "이 도움말",
    "This link signs in once.": "이 링크로는 한 번만 로그인할 수 있습니다.",
    "To the overview": "개요로 이동",
    "Token or API key": "토큰 또는 API 키",
    "Too large": "너무 큽니다",
    "Too much at once": "요청이 한꺼번에 너무 많습니다",
    "You are not signed in": "로그인하지 못했습니다",
    "You are signed out": "로그아웃했습니다",
    "Your session has ended": "세션이 끝났습니다",
    "cancelled": "취소됨",
    "failed": "실패",
    "queued": "대기 중",
    "running": "실행 중",
    "scheduled": "예약됨",
    "succeeded": "성공",
    "try again in {time}": "{time} 후에 다시 시도하세요",
}
