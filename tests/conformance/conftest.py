"""Collects the outcomes of the session and prints their table at its end."""

from __future__ import annotations

import pytest

from tests.conformance.outcome import Outcome, table

OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """The outcomes so far; a test adds its own."""
    return request.config.stash.setdefault(OUTCOMES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the conformance table."""
    if outcomes := config.stash.get(OUTCOMES, []):
        terminalreporter.section("conformance")
        terminalreporter.write_line(table(outcomes))
        terminalreporter.write_line(f"{sum(outcome.seconds for outcome in outcomes):.0f} s in export and proof")
