"""Who may use a front end. Secret: never in the settings, the plan or a log."""

import msgspec


class Access(msgspec.Struct, frozen=True):
    """What the launcher hands to front ends alone, when it starts them."""

    api_keys: tuple[str, ...] = ()
    """Any one of them opens every path; none: all are open."""

    def __repr__(self) -> str:
        return f"Access({len(self.api_keys)} keys)"
