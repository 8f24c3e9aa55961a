"""What the doctor has to say: problems, which a run would fail on, and warnings."""

from __future__ import annotations

import dataclasses

from pinsage_jax.core.errors import UserError

PROBLEM, WARNING = "problem", "warning"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One sentence about the inputs.

    Attributes:
      level: PROBLEM (training or evaluation cannot be trusted, or would refuse) or
        WARNING (worth a look).
      topic: what it is about: edges, items, collections, ids, features, leaks, machine.
      sentence: for a person; names examples where there are any.
    """

    level: str
    topic: str
    sentence: str


class Findings(list[Finding]):
    """All findings, in the order in which they came up."""

    def problem(self, topic: str, sentence: str) -> None:
        """Adds a problem, unless the same sentence was said before."""
        if sentence not in [finding.sentence for finding in self]:
            self.append(Finding(PROBLEM, topic, sentence))

    def warn(self, topic: str, sentence: str) -> None:
        """Adds a warning."""
        self.append(Finding(WARNING, topic, sentence))

    def of(self, level: str) -> list[Finding]:
        """Those of one level."""
        return [finding for finding in self if finding.level == level]

    def caught(self, topic: str) -> _Caught:
        """For a with statement: a UserError inside becomes a problem, and the check-up goes on."""
        return _Caught(self, topic)


@dataclasses.dataclass(frozen=True)
class _Caught:
    """A class, because a generator would not tell a type checker that it ends errors."""

    findings: Findings
    topic: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.findings.problem(self.topic, str(error))
        return isinstance(error, UserError)
