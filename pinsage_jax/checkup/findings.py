"""Findings of the doctor: problems, on which a run would fail, and warnings."""

from __future__ import annotations

import dataclasses

from pinsage_jax.core.errors import UserError

PROBLEM, WARNING = "problem", "warning"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding about the inputs.

    Attributes:
      level: PROBLEM (the run would stop, or its figures could not be trusted) or WARNING
        (the run works, but the user should check something).
      topic: edges, items, collections, ids, features, leaks or machine.
      sentence: the message to the user, with examples where there are any.
    """

    level: str
    topic: str
    sentence: str


class Findings(list[Finding]):
    """A list of findings, in the order in which they were made."""

    def problem(self, topic: str, sentence: str) -> None:
        """Adds a problem, unless a finding with the same sentence exists."""
        if sentence not in [finding.sentence for finding in self]:
            self.append(Finding(PROBLEM, topic, sentence))

    def warn(self, topic: str, sentence: str) -> None:
        """Adds a warning."""
        self.append(Finding(WARNING, topic, sentence))

    def of(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self if finding.level == level]

    def caught(self, topic: str) -> _Caught:
        """A context manager that turns a UserError into a problem, so that the checks continue."""
        return _Caught(self, topic)


@dataclasses.dataclass(frozen=True)
class _Caught:
    """The context manager of Findings.caught.

    It is a class because type checkers do not see that a generator suppresses exceptions.
    """

    findings: Findings
    topic: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self.findings.problem(self.topic, str(error))
        return isinstance(error, UserError)
