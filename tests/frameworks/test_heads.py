from __future__ import annotations

from typing import Any, ClassVar

from tests.frameworks.conformance import FrameworkConformance


class TestHeads(FrameworkConformance):
    name = "heads"
    settings: ClassVar[dict[str, Any]] = {"num_heads": 3}
    needs: ClassVar[dict[str, Any]] = {"neighborhood__pool": "data", "bank__size": 0}
