"""A dozen real sentences in several languages, for tests that run both embedded models."""

from __future__ import annotations

import json
from pathlib import Path

PASSAGES: list[dict[str, object]] = [
    {
        "_id": "vaccine",
        "title": "Vaccines",
        "text": "Vaccines train the immune system to recognise a pathogen, so that the body "
        "responds quickly when it meets the real one.",
        "year": 2021,
    },
    {
        "_id": "tomato",
        "title": "Tomatoes",
        "text": "Plant tomato seedlings in a sunny place after the last frost, water them at the root and "
        "stake the stems.",
    },
    {
        "_id": "photosynthesis",
        "text": "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen "
        "in the leaves of plants.",
    },
    {
        "_id": "volcano",
        "text": "A volcano erupts when molten rock rises through the crust and gas pressure breaks the surface.",
    },
    {"_id": "paris", "text": "Paris is the capital of France and lies on the river Seine."},
    {"_id": "berlin", "text": "Berlin ist die Hauptstadt Deutschlands und liegt an der Spree."},
    {"_id": "madrid", "text": "Madrid es la capital de España y la ciudad más poblada del país."},
    {"_id": "tokyo", "text": "東京は日本の首都であり、世界最大級の都市圏を形成している。"},
    {"_id": "moon", "text": "The Moon orbits the Earth once in about 27 days and causes the tides."},
    {
        "_id": "bread",
        "text": "Bread rises because yeast ferments sugar and gives off carbon dioxide, which the gluten holds.",
    },
    {"_id": "chess", "text": "In chess the king may castle only if neither the king nor the rook has moved."},
    {
        "_id": "long",
        "text": " ".join(
            f"In the year {1500 + i} the town recorded {i} ships, {i * 3} barrels of salt and one eclipse."
            for i in range(60)
        )
        + " The last lighthouse keeper was called Abernathy.",
    },
]

QUERIES = {
    "how do vaccines work?": "vaccine",
    "growing tomatoes in the garden": "tomato",
    "¿Cuál es la capital de Francia?": "paris",
    "日本の首都はどこですか": "tokyo",
    "why does dough rise?": "bread",
}


def write_corpus(path: Path) -> Path:
    """The passages as JSON lines."""
    lines = [json.dumps(passage, ensure_ascii=False) for passage in PASSAGES]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
