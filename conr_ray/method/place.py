"""Where a process is in training; read by who watches it, without torch."""

from __future__ import annotations

# Before the first phase, and while what is trained is sent elsewhere.
NO_PHASE, UPLOAD = "not training yet", "upload"


class Place:
    """Where this process is in training.

    Attributes:
        phases: number of phases begun.
        phase: the latest of them.
    """

    phases = 0
    phase = NO_PHASE


place = Place()
