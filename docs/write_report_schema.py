"""Write ``docs/report.schema.json``, the JSON schema of ``report.json``, from the code's own types."""

from __future__ import annotations

import json
from pathlib import Path

from vqcompress.reports import json_schema

if __name__ == "__main__":
    target = Path(__file__).with_name("report.schema.json")
    target.write_text(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
