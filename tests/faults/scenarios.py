"""All of them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import databases, storage, stores
from tests.faults.stage import Scenario

SCENARIOS: Sequence[Scenario] = (*databases.SCENARIOS, *stores.SCENARIOS, *storage.SCENARIOS)
