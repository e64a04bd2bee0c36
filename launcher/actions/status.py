"""`action=status`: what of a running deployment is there, beside what was planned."""

import msgspec

from launcher.config import StatusFormat
from launcher.control_client import get_state
from launcher.show import rendered, show
from launcher.status import status_of, status_table


def show_status(name: str, form: StatusFormat) -> int:
    """Prints it to stdout.

    Returns:
        0: everything is ready. 1: something is not.

    Raises:
        Refused: No deployment of this name runs.
        NoAnswer: Its launcher does not answer.
    """
    status = status_of(get_state(name))
    match form:
        case StatusFormat.table:
            show(rendered(status_table(status)))
        case StatusFormat.json:
            show(msgspec.json.format(msgspec.json.encode(status), indent=2).decode() + "\n")
    return 0 if status.is_ready else 1
