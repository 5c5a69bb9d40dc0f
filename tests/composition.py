"""compose.yaml as Compose reads it: merged, and with the variables of an environment put in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FILE = ROOT / "compose.yaml"
_VARIABLE = re.compile(r"\$\$|\$\{([A-Z_]+):-([^}]*)\}|\$")


def composition(**environment: str) -> dict[str, Any]:
    """The whole file; what the environment does not have gets its default."""

    def value_of(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        assert match[1], f"{match.string}: a variable is written ${{NAME:-default}}, a dollar sign $$"
        return environment.get(match[1]) or match[2]

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: put_in(value) for key, value in node.items()}
        if isinstance(node, list):
            return [put_in(value) for value in node]
        return _VARIABLE.sub(value_of, node) if isinstance(node, str) else node

    read: dict[str, Any] = put_in(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    return read


def seconds(duration: str) -> float:
    """A duration such as 1m30s."""
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", duration), duration
    return sum(
        int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)
    )
