"""The page, which asks this server alone."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

HERE = Path(__file__).parent
SCRIPT = (HERE / "page.js").read_text()
PAGE = (HERE / "page.html").read_text().replace("{{ script }}", SCRIPT).encode()
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; img-src 'self'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
