"""Labelled rows out of the demo's assets: four small classification tasks on real text."""

import html
import json
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from das_jax.data import demo

Labelled = tuple[str, str]
"""A text and its label."""

# Which asset the rows of a task come from.
ASSETS = {
    "acl_roles": "acl",
    "reviews_fresh": "reviews",
    "tweets_outlet": "news-and-tweets",
    "news_outlet": "news-and-tweets",
}

# For a small CPU; acl_roles has the split that its authors made.
TEST_ROWS, TRAIN_ROWS = 800, 1200

# Six of the sixteen accounts, each with 3,500 tweets or more, that differ in their subjects, their
# country or their style.
TWEET_OUTLETS = (
    "KaiserHealthNews",
    "bbchealth",
    "goodhealth",
    "nprhealth",
    "nytimeshealth",
    "reuters_health",
)

NEWS_OUTLETS = {
    "abcnews.go.com": "ABC News",
    "europe.chinadaily.com.cn": "China Daily",
    "tass.com": "TASS",
    "www.aljazeera.com": "Al Jazeera",
    "www.bbc.co.uk": "BBC",
    "www.cnn.com": "CNN",
    "www.dw.com": "Deutsche Welle",
    "www.huffingtonpost.com": "HuffPost",
    "www.rte.ie": "RTE",
}

# Title and lead; a model would not read the rest.
NEWS_CHARACTERS = 400

# What the sentence splitter of acl_roles left over: "answers .".
FRAGMENT_CHARACTERS = 15

LINK_OR_HANDLE = re.compile(r"(?:\bhttps?\b|@)\S*")  # Retweets end in half a link.
GIVEN_AWAY = re.compile(
    r"""\b(?:
        abc(?:\ ?news)? | al[\ -]?jazeera | bbc\w* | china\ ?daily | cnn\w* | deutsche\ welle | dw
        | good\ ?health | health\ magazine | huff(?:ington)?\ ?post | itar | kaiser(?:\ ?health\ ?news)?
        | khn | npr\w* | ny\ ?times\w* | (?:the\ )?new\ york\ times | reuters(?:[_\ ]health)? | rt[eé]?
        | tass | share\ this\ with | media\ playback\ is\ (?:not\ |un)supported\ on\ \w+\ device
    )\b(?:'s)?""",
    re.IGNORECASE | re.VERBOSE,
)
"""The outlets' names, and what their pages say above an article."""


def rows(name: str, split: str, cache_dir: Path) -> Iterator[dict[str, str]]:
    """The rows of a demo task.

    Args:
        name: `acl_roles` (is a sentence of a paper about the challenge, the approach or the outcome?),
            `reviews_fresh` (is a film review fresh or rotten?), `tweets_outlet` (who wrote a health
            tweet?) or `news_outlet` (who published an article?).
        split: `train` or `test`; no text of the last three is in both.
        cache_dir: Where demo files are kept.

    Yields:
        `text` and `label`.

    Raises:
        UserError: As `demo.fetch`.
    """
    found: Iterable[Labelled]
    match name:
        case "acl_roles":
            found = _acl_roles(split, cache_dir)
        case "reviews_fresh":
            found = _part(split, _reviews(cache_dir))
        case "tweets_outlet":
            found = _part(split, _tweets(cache_dir))
        case "news_outlet":
            found = _part(split, _news(cache_dir))
    for text, label in found:
        yield {"text": text, "label": label}


def _part(split: str, labelled: Iterator[Labelled]) -> Iterable[Labelled]:
    """The rows whose hashes are the smallest are the test; those that follow are for training."""
    labels: dict[str, set[str]] = {}
    for text, label in labelled:
        labels.setdefault(text, set()).add(label)
    # A text with two labels can only be guessed.
    clear = ((text, label.pop()) for text, label in labels.items() if len(label) == 1)
    ordered = sorted(clear, key=lambda row: sha256(row[0].encode()).digest())
    if split == "test":
        return ordered[:TEST_ROWS]
    return ordered[TEST_ROWS : TEST_ROWS + TRAIN_ROWS]


def _acl_roles(split: str, cache_dir: Path) -> Iterator[Labelled]:
    directory = demo.fetch("acl", cache_dir)
    for name in ("test",) if split == "test" else ("train", "val"):
        for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            paper = json.loads(line)
            for section, sentences in paper["sentences"].items():
                marks = {role: marked[section] for role, marked in paper["highlights"].items()}
                for number, sentence in enumerate(sentences):
                    roles = [role for role, marked in marks.items() if marked[number]]
                    if len(roles) == 1 and len(sentence) >= FRAGMENT_CHARACTERS:
                        yield sentence, roles[0]


def _reviews(cache_dir: Path) -> Iterator[Labelled]:
    for row in demo.rows("reviews", cache_dir):
        text = row["text"].strip()
        if text and row["category"] in ("fresh", "rotten"):
            yield text, row["category"]


def _tweets(cache_dir: Path) -> Iterator[Labelled]:
    for row in demo.rows("tweets", cache_dir):
        outlet = row["source_id"].rpartition("-")[0]
        if outlet in TWEET_OUTLETS:
            words = _anonymous(html.unescape(row["text"])).split()
            if len(words) >= 3:
                yield " ".join(words), outlet


def _news(cache_dir: Path) -> Iterator[Labelled]:
    for row in demo.rows("news", cache_dir):
        text = _anonymous(f"{row['title']}. {row['text'][:NEWS_CHARACTERS]}")
        # Which characters got broken on the way into the table differs from outlet to outlet.
        text = re.sub(r"[^\w\s.,]+", " ", text)
        text = re.sub(r"\s*([.,])(?:\s*[.,])*", r"\1", text)  # "MOSCOW, March 1. /TASS/. The"
        yield (
            " ".join(text.split()),
            NEWS_OUTLETS[str(urlsplit(row["article_source_link"]).hostname)],
        )


def _anonymous(text: str) -> str:
    return GIVEN_AWAY.sub(" ", LINK_OR_HANDLE.sub(" ", text))
