"""Made-up essays, questions and documents in the forms that RULER's authors download."""

from __future__ import annotations

import random
import re
from typing import Any

_WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "sa", "te") for b in ("r", "n", "sh", "ba")]


def words_in(text: str) -> int:
    """A stand-in for a tokenizer: words and signs."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def sentences(text: str) -> list[str]:
    """A stand-in for NLTK, whose data is no package."""
    return re.split(r"(?<=\.) ", text)


def _sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(words)).capitalize() + "."


def essay() -> str:
    """Of about 1,200 words, with lines and runs of blanks."""
    draw = random.Random(1)
    return "  \n".join(_sentence(draw, 5 + n % 9) for n in range(120))


def squad() -> dict[str, Any]:
    """As `dev-v2.0.json`: articles with paragraphs, some questions without an answer."""
    draw = random.Random(2)
    articles = []
    for article in range(8):
        paragraphs = []
        for paragraph in range(3 + article % 3):
            context = " ".join(_sentence(draw, 12) for _ in range(4))
            asked = []
            for number in range(3):
                impossible = (article + paragraph + number) % 3 == 0
                texts = [] if impossible else [context.split()[number], context.split()[-1]]
                asked.append(
                    {
                        "id": f"{article}-{paragraph}-{number}",
                        "question": f"What is {number} of {paragraph} in {article}?",
                        "answers": [{"text": text, "answer_start": 0} for text in texts],
                        "is_impossible": impossible,
                    }
                )
            paragraphs.append({"context": context, "qas": asked})
        articles.append({"title": f"Article {article}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def squad_on_the_hub() -> list[dict[str, Any]]:
    """The same questions in the hub's rows."""
    return [
        {
            "id": asked["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {
                "text": [answer["text"] for answer in asked["answers"]],
                "answer_start": [0 for _ in asked["answers"]],
            },
        }
        for article in squad()["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def hotpotqa() -> list[dict[str, Any]]:
    """As `hotpot_dev_distractor_v1.json`: two to ten documents a question, some of them again."""
    draw = random.Random(3)
    pool = [[f"Title {n}", [_sentence(draw, 9) + " " for _ in range(3)]] for n in range(60)]
    return [
        {
            "_id": str(n),
            "question": f"Who is {n}?",
            "answer": draw.choice(_WORDS),
            "context": draw.sample(pool, 2 + n % 9),
        }
        for n in range(20)
    ]


def hotpotqa_on_the_hub() -> list[dict[str, Any]]:
    """The same questions in the hub's rows."""
    return [
        {
            "id": row["_id"],
            "question": row["question"],
            "answer": row["answer"],
            "context": {
                "title": [title for title, _ in row["context"]],
                "sentences": [texts for _, texts in row["context"]],
            },
        }
        for row in hotpotqa()
    ]
