"""Collects the outcomes of the session and prints their table at its end."""

from __future__ import annotations

import pytest

from tests.conformance.outcome import MODULE_PRECISIONS, PRECISIONS, Outcome, table

OUTCOMES = pytest.StashKey[list[Outcome]]()
ENCODER_OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """The outcomes so far; a test adds its own."""
    return request.config.stash.setdefault(OUTCOMES, [])


@pytest.fixture
def encoder_outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """The same for models without a cache."""
    return request.config.stash.setdefault(ENCODER_OUTCOMES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the conformance tables."""
    for key, precisions in ((OUTCOMES, PRECISIONS), (ENCODER_OUTCOMES, MODULE_PRECISIONS)):
        if outcomes := config.stash.get(key, []):
            terminalreporter.section("conformance")
            terminalreporter.write_line(table(outcomes, precisions))
            terminalreporter.write_line(f"{sum(outcome.seconds for outcome in outcomes):.0f} s in export and proof")
