"""What limits each target, found with profilers and written by hand: the last column of its table.

The keys are the names of the targets. A target without a text has an empty cell.
"""

from __future__ import annotations

LIMITS: dict[str, str] = {}
