"""Where the workers and the driver of a job on Ray meet: no torch here, which slows a start."""

from __future__ import annotations


class Office:
    """An actor: what the workers and the driver of one job tell each other."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.begun = 0
        self.refused = False
        self.stopped = False
        self._lines: list[tuple[str, str]] = []

    def begin(self, resumes: bool) -> None:
        """Counts an attempt and tells of those after the first.

        Args:
            resumes: an attempt before has taken the run folder.
        """
        self.begun += 1
        if self.begun > 1:
            how = "goes on from the last checkpoint" if resumes else "starts from the beginning"
            self.tell("stderr", f"twofold: Attempt {self.begun} of {self.attempts}: {how}.\n")

    def refuse(self) -> None:
        """The trainer has told the user what is wrong: nothing is to be tried again."""
        self.refused = True

    def is_refused(self) -> bool:
        """For workers and driver."""
        return self.refused

    def stop(self) -> None:
        """The user wants no more of the job."""
        self.stopped = True
        self.refuse()

    def is_stopped(self) -> bool:
        """For workers."""
        return self.stopped

    def tell(self, stream: str, text: str) -> None:
        """Something for the driver to print on its ``stdout`` or ``stderr``."""
        self._lines.append((stream, text))

    def read(self) -> list[tuple[str, str]]:
        """All that was told since the last call."""
        lines, self._lines = self._lines, []
        return lines
