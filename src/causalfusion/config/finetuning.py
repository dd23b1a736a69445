"""Settings of fine-tuning: what a model that goes on with new data is trained for."""

from __future__ import annotations

from typing import Literal

TaskName = Literal["generate"]
