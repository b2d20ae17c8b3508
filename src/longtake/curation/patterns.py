"""What gives away that a reasoning was not written by somebody who watched a video: patterns of English, tested in both directions.

Each list is one check. A pattern is tried only on texts that have one of its triggers in them, which is ten times faster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class Phrases:
    """Patterns, each with words of which a text has at least one wherever the pattern is found."""

    def __init__(self, flags: re.RegexFlag, *patterns: tuple[str, str]) -> None:
        """(triggers, pattern): triggers in lower case, separated by `|`; none: always tried."""
        self.patterns: Sequence[tuple[tuple[str, ...], re.Pattern[str]]] = [
            (tuple(filter(None, triggers.split("|"))), re.compile(pattern, flags)) for triggers, pattern in patterns
        ]

    def search(self, text: str) -> re.Match[str] | None:
        """Where the first of the patterns is found."""
        lower = text.lower()
        for triggers, pattern in self.patterns:
            if (not triggers or _any_in(triggers, lower)) and (match := pattern.search(text)):
                return match
        return None


def _any_in(triggers: Sequence[str], text: str) -> bool:
    """A loop: half the time of any()."""
    for trigger in triggers:  # noqa: SIM110
        if trigger in text:
            return True
    return False


def either(*parts: str) -> str:
    return f"(?:{'|'.join(parts)})"


ENDS = r"(?=\s*(?:[,!.\u2026\u2014\u2013]|-\s|$))"
"""What stands after a word that is thrown in."""
OPENS = either(r"^", r"[.!?:;\u2026][\"'\u201d)\]]*\s+", r"\n\s*", r"\s[\u2014\u2013-]+\s*", r"\u2014\s*", r"\(\s*")
START = OPENS + r"(?:(?:but|and|oh|no|so|yes|well|ok|okay|hm+),?\s+)?"
"""Of a sentence, or of what is thrown in: `wait` is said there; elsewhere somebody waits."""
TO_DO = either(
    *("think", "see", "check", "look", "re-?read", "re-?check", "re-?think", "reconsider", "recall", "go back", "go through", "double"),
    *("verify", r"analy[sz]e", "start", "begin", "consider", "figure", "break", "count", "review", "find", "list", "make sure", "try"),
    *("confirm", "write", "focus", "examine", "identify", r"summari[sz]e", "compare", "piece", "put", "walk", "determine"),
)
UNSURE = either(
    "(?:not|n't) (?:entirely |quite |really |completely |so )?sure", "unsure", "confused", "thinking", "going to", "supposed to"
)
ASKS = either(
    *("asks?", "asked", "wants?", "wanted", "needs?", "said", "says", "is asking", "may", "might", "expects?", "gave", "provides?"),
    *("has (?:given|asked|provided)", "provided", "requests?", "requested", "question", "query", "prompt", "instructions?"),
)
MACHINE = r"an? (?:ai|(?:large )?language model|ai assistant|assistant here)\b"

DELIBERATION = Phrases(
    re.IGNORECASE,
    ("think", r"<\s*/?\s*think"),
    ("wait", START + r"wait" + ENDS),
    ("wait", START + r"wait,? (?:no|but|a (?:minute|second|moment))\s*[,.!?\u2026\u2014]"),
    ("wait", r"\b(?:but|oh|no|hold on)[,.]? wait" + ENDS),
    ("hm", r"\bh+m{2,}\b|\bhm\b"),
    ("hold on|hang on|on reflection", START + r"(?:hold on|hang on|on reflection)" + ENDS),
    ("ok|alright|all right|now then", START + r"(?:okay|ok|alright|all right|now then)\s*,"),
    ("let", rf"\b(?:let me|let'?s|let\u2019s|let us) (?:now |just |first |quickly )?{TO_DO}"),
    ("second thought", r"\bon second thoughts?\b"),
    ("come to think", r"\bcome to think of it\b"),
    ("scratch", r"\bscratch that\b"),
    ("actually", r"\bactually,? no\b|\bno,? actually\b"),
    ("mist|wrong", r"\bmy mistake\b|\bi (?:was|am|have been) (?:wrong|mistaken)\b|\bi(?: have|'ve)? made a mistake\b"),
    ("misread", r"\bi(?: have|'ve)? misread\b"),
    ("i'm|i am", rf"\bi(?:'m| am) {UNSURE}\b"),
    ("asked|told|given", r"\bi(?:'m| am|'ve been| was| have been) (?:asked|told|given) (?:to|the|a|only)\b"),
    ("i need|i have|i want|i ought|i would", r"\bi (?:need|have|want|ought|would need) to\b"),
    ("we need|we have|we want", rf"\bwe (?:need|have|want) to {TO_DO}"),
    ("i should|i must|i guess|i suppose|i wonder|i might", r"\bi (?:should|must|guess|suppose|wonder|might)\b"),
    ("i'll|i will|i\u2019ll", r"\bi(?:'ll| will|\u2019ll) (?:now |just |first )?" + TO_DO),
    ("should i|shall i|could i", r"\b(?:should|shall|could) i\b"),
    ("maybe|perhaps", r"\b(?:maybe|perhaps) (?:i|the (?:question|answer|user))\b"),
    ("the user", rf"\bthe user(?:'s|\u2019s)? {ASKS}\b"),
    ("an ai|model|assistant", rf"\b(?:as|i'm|i am) {MACHINE}"),
    ("task|instruct", r"\b(?:my|the) (?:task|instructions?) (?:is|are|says?|asks?|requires?|was|were)\b|\bas instructed\b"),
    ("multiple|distract|json", r"\bmultiple[- ]choice\b|\bdistractors?\b|\bjson\b"),
    ("format", r"\b(?:required|requested|correct) (?:output )?format\b"),
)
"""Left-over thinking."""

SAYS = either(
    *("says?", "said", "states?", "stated", "mentions?", "mentioned", "describes?", "described", "notes?", "noted", "indicates?"),
    *("indicated", "reports?", "tells?", "specif(?:y|ies)", "lists?", "reads?", "does(?:n't| not)", "do(?:n't| not)"),
)
NOTHING_SEEN = either("text", "passage", "narrative", "summary", "context", "event log", "metadata", "notes?", "log", "input")
"""Of a text: what a viewer does not have. A sign, a letter or a page may have a text: see `ON_SCREEN`."""
ON_SCREEN = "".join(rf"(?<!{word} )" for word in ("on-screen", "onscreen", "on screen", "title", "news", "printed", "handwritten", "photo"))
PLACE_OF_TEXT = (
    r"(?! (?:on|at|in|under|below|beneath|above|across|along|over) (?:the |a |its )?(?:\w+ )?"
    r"(?:screen|picture|bottom|top|corner|photo|photograph|painting|frame|wall|image|poster|page|map|sign|display|board))"
)
GIVEN = either("provided", "given", "supplied", "available", "above")
HANDED_OUT = either(
    *("information", "texts?", "context", "details?", "data", "summar(?:y|ies)", "notes", "material", "passages?", "annotations?"),
    *(r"time-?stamps?", "segments?", "clips?", "sequence of events", "observations?", "timeline"),
)
NTH = either(
    "first", "second", "third", "fourth", "fifth", "sixth", "next", "last", "final", "previous", "earlier", "later", r"\d+(?:st|nd|rd|th)"
)

CAPTIONS = Phrases(
    re.IGNORECASE,
    ("caption", rf"{ON_SCREEN}\bcaptions?\b{PLACE_OF_TEXT}"),
    ("description", r"\b(?:clip|segment|scene|video|visual|textual|written|detailed|time-?stamped|frame) descriptions?\b"),
    ("description", rf"\b(?:the|these|this|each|all) {GIVEN} descriptions?\b"),
    ("description", rf"\bthe descriptions?,? (?:of (?:the|this|each) (?:\w+ )?(?:clip|segment|scene|video)s?|{SAYS}|{GIVEN})\b"),
    ("description", r"\b(?:according to|based on|from|in|per|by) (?:the|these|this|each) descriptions?\b"),
    ("clip|segment|excerpt", r"\b(?:clip|segment|excerpt)s?\s*(?:#|nos?\.|numbers?)?\s*\d"),
    ("scene", r"\bscene\s+(?:#|no\.|number)?\s*\d+\b"),
    ("clip|segment", rf"\b{NTH} (?:clip|segment)s?\b(?! of (?!the (?:video|film|movie|footage)))"),
    ("clip|segment", rf"\b(?:clip|segment)s? {SAYS}\b"),
    ("clip|segment", r"\b(?:in|at|from|during|of) the (?:clip|segment)s? (?:from |at |between |covering |spanning )?\(?\d"),
    ("transcript", r"\btranscripts?\b(?! of)|\btranscription\b"),
    ("the ", rf"{ON_SCREEN}\bthe (?:{GIVEN} )?{NOTHING_SEEN},? (?:also |then |only |clearly )?{SAYS}\b"),
    ("provided|given|supplied|available|above", rf"\b{GIVEN} {HANDED_OUT}\b"),
    (
        "provided|given|supplied",
        r"\b(?:information|details?|context|data) (?:(?:that|which) (?:is|was|were) |i was |we are )?(?:provided|given|supplied)\b",
    ),
    ("according to", rf"\baccording to the (?:{HANDED_OUT}|{NOTHING_SEEN})\b{PLACE_OF_TEXT}"),
    ("mention of", r"\b(?:no|any|first|only) mention of\b"),
    ("mentioned|stated|described", r"\b(?:explicitly|specifically|directly|clearly|not|as|as was) (?:mentioned|stated|described)\b"),
    (
        "mentioned|stated|described",
        r"\b(?:is|are|was|were|it's) (?:then |also |later )?(?:mentioned|stated|described)"
        r" (?:in|at|that|as|to|here|above|earlier|later|between|from|during)\b",
    ),
    ("bounding|coordinates", r"\bbounding box(?:es)?\b|\bnormali[sz]ed coordinates\b"),
    ("[", r"\[\s*\d+(?:\.\d+)?\s*(?:,\s*\d+(?:\.\d+)?\s*){3}\]"),
    ("object|detection", r"\b(?:object|detection) (?:list|log)\b"),
    ("<", r"<\s*/?\s*(?:captions|objects|options|ranges|video)\s*>"),
)
"""Notes in place of the video."""
VOICE = re.compile(
    r"\b(?:narrat\w+|voice-?over|host|guide|reporter|commentator|announcer|speaker|presenter|teacher|instructor|interview\w*|radio)\b",
    re.IGNORECASE,
)
"""Somebody in the video states or describes something, and no note does."""

ALONE = r"(?!['\u2019]?\w)"
VERB_AFTER_A = r"(?=\s+(?:is|are|and|or|because|since|but|as|was|fits?|matches|seems|would|can)\b)"
LETTER = either(rf"[B-H]{ALONE}", rf"A{ALONE}(?!\s+[a-z0-9])", rf"A{VERB_AFTER_A}")
"""Of an option; `A` is one unless a word follows of which it is the article."""
MARKS = r"\s*[(\"'\u201c\[*]*"
CHOICE = r"(?i:options?|choices?|answers?|alternatives?)"
IS = r"(?i: is| are| must be| would be| should be| here is|:|,| -| \u2014)?(?i: clearly| therefore| thus| then| probably)?:?"
RULES_OUT = (
    r"(?i:eliminat(?:e|es|ed|ing)|rul(?:e|es|ed|ing) out|exclud(?:e|es|ed|ing)|discard(?:s|ed|ing)?|reject(?:s|ed|ing)?"
    r"|dismiss(?:es|ed|ing)?|leav(?:es|ing)(?: only| just| us with)?|confirm(?:s|ed|ing)?|match(?:es|ed|ing)?|contradict(?:s|ed|ing)?)"
)
AFTER_LETTER = r"(?=\s*(?:[,.;:)]|$|(?:and|or|as|because|since|is|are)\b))"
JUDGED = r"(?:is|are|seems|appears|looks|must be|can be|cannot be) (?:(?:clearly|also|therefore|thus|definitely|not|the|ruled) )*" + either(
    *("correct", "right", "wrong", "incorrect", "true", "false", "out", "best", "answer", "eliminated", "excluded")
)

OPTION_WORDS = "option|choice|answer|alternative"

LETTER_NAMES = Phrases(
    re.NOFLAG,
    (OPTION_WORDS, rf"\b{CHOICE}{IS}{MARKS}{LETTER}"),
    (" one", rf"\b(?i:(?:correct|right|best|wrong|final) one{IS}){MARKS}{LETTER}"),
    ("(|[|*", r"[(\[*]\s*[A-H]\s*[.)]?\s*[)\]*](?!\w)"),
    ("", r"(?:^|\n|[.!?:;]\s)[-* ]*\(?[A-H][.):]\s"),
    ("elim|rul|exclud|disc|rej|dis|leav|conf|match|contra", rf"\b{RULES_OUT} {LETTER}{AFTER_LETTER}"),
    ("", rf"(?:^|[.!?;,:]\s+|\b(?:so|and|but|that|while|because) )[\"'\u201c]?[A-H][\"'\u201d]? {JUDGED}\b"),
    ("", r"\b[A-H], [A-H],? (?:and|or|nor) [A-H]\b"),
    ("", r"(?:^|[.!?;,:]\s+)[A-H] (?:and|or|nor) [A-H] (?:are|can|do|is|contradict|both|fail)\b"),
    (
        "option|choice|alternative",
        r"\b(?i:the (?:very )?(?:first|second|third|fourth|last|final|next)(?: two| three)?(?: listed| given| answer)?"
        r" (?:options?|alternatives?|choices?))\b(?! (?:of|for|that|on|by) )",
    ),
    (OPTION_WORDS, rf"\b{CHOICE}(?i: number| no\.| #)? (?i:one|two|three|four|[1-4]|ii|iii|iv)(?![\w.:%])"),
    (
        "option|choice|alternative",
        r"\b(?i:first|second|third|fourth|last) (?i:of the (?:four |listed |given )?(?:options|choices|alternatives))\b",
    ),
    ("\u2192|->|=", r"(?:\u2192|->|=>|=)\s*\(?[A-H]\)?(?=\s*[.,;)]|\s*$)"),
    ("so|therefore|thus|hence", r"\b(?i:so|therefore|thus|hence),?(?i: it is| it's| it must be)? [B-H](?=\s*(?:[.!]|$))"),
)
"""Options by their letters or places."""

TIMES = re.compile(
    r"(?<![\w.:])(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)?\s*(?:-|\u2013|\u2014|to|and|until)\s*(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)\b"
    r"|\bat\s+(?:about\s+|around\s+)?(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)\b(?! (?:intervals?|later|apart|each|per))",
    re.IGNORECASE,
)
"""`12.0 s - 22.0 s`, `between 12 and 22 seconds`, `at 12 s`."""
DENIES = re.compile(
    r"\b(?:no|not|never|nor|neither|none|cannot|without|rather|instead|unlike|except|other than)\b"
    r"|\b(?:although|though|while|whereas|despite|but)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
"""A sentence that may name what the answer is not."""
ASIDE = re.compile(
    r"\b(?:before|after|since|until|from|than|leav(?:es|ing)|left|entering|reaching|outside|near|beyond|past|behind)"
    r" (?:(?:the|a|an|its|his|her|their|that|this) )?\w+",
    re.IGNORECASE,
)
"""What only says when or from where: `after the cave`."""
CONCLUDES = re.compile(
    r"\W*(?:so|therefore|thus|hence|consequently|accordingly|this (?:shows|means|tells|proves|confirms)|that (?:shows|means|is why)"
    r"|in (?:conclusion|short|sum)|overall|the (?:right |correct )?answer|from this|taken together|all (?:in all|of this))\b",
    re.IGNORECASE,
)
"""Begins the sentence that says what follows from all before."""
