from __future__ import annotations

from tests.frameworks.conformance import FrameworkConformance


class TestSimSiam(FrameworkConformance):
    name = "simsiam"
