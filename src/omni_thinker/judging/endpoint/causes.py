"""Why a question has no answer."""


class NoReply(Exception):
    """The endpoint gave no usable reply, and asking again is no use (any more). The message names the cause.

    `worked`: whether the server may have worked on the question, so that it may have to be paid for."""

    def __init__(self, why: str, *, worked: bool = True) -> None:
        super().__init__(why)
        self.worked = worked


class TryAgain(NoReply):
    """This attempt has failed, and another one may not.

    `wait`: seconds that the server asks for. `away`: the server couldn't be reached. `most`: attempts after which more
    of them are no use; None: as many as the recipe allows."""

    def __init__(
        self, why: str, *, wait: float | None = None, away: bool = False, most: int | None = None, worked: bool = True
    ) -> None:
        super().__init__(why, worked=worked)
        self.wait, self.away, self.most = wait, away, most


def short(text: object) -> str:
    """At most 160 characters of a server's or a model's words, on one line."""
    return " ".join(str(text).split())[:160]
