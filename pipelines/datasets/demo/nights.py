"""The two nights of the demo's data: where they lie, and what the second has instead of photographs, a film."""

from __future__ import annotations

NIGHTS = ("night/ds=2026-01-01", "night/ds=2026-01-02")
NIGHT_SHARDS = 3
FILM = "film.mp4"
SHOT_SECONDS = 2
"""How long each scene of the film lasts."""
